# Everpage. `make help` lists the targets.
SHELL := /bin/bash
GO ?= go
BIN := bin/everpage

# Only what is built to be run is optimised by the profile: all its dependencies are compiled for it once more.
lint test race: export GOFLAGS += -pgo=off

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

.PHONY: build
build: ## build bin/everpage, optimised by cmd/everpage/default.pgo
	$(GO) build -o $(BIN) ./cmd/everpage

.PHONY: demo
demo: build ## the main job in under three minutes: follow, have an accident, restore to the moment before
	@$(GO) run ./deploy/demo --binary $(BIN)

.PHONY: cluster
cluster: build ## three nodes, a primary and pgbench on loopback; deploy/local-cluster.sh status and stop
	@deploy/local-cluster.sh start

.PHONY: servers
servers: ## fetch the PostgreSQL and S3 servers that tests run against
	@for major in 14 15 16 17 18; do deploy/postgres/fetch.sh $$major >/dev/null || exit 1; done
	@deploy/s3test/fetch.sh "$$(deploy/postgres/fetch.sh --cache-dir)" >/dev/null

.PHONY: test
test: servers ## all tests, at most 20 minutes on 2 cores
	$(GO) test -timeout 30m ./...

.PHONY: race
race: servers ## the tests of packages with goroutines, under the race detector
	$(GO) test -race -timeout 40m ./chunk/... ./cluster/... ./pageapi/... ./wal/... ./cmd/...

.PHONY: lint
lint: ## formatting, vet, static analysis, generated code, layering
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt would change:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	deploy/lint/tools.sh
	pageapi/pagepb/generate.sh --check
	$(GO) test ./deploy/lint

.PHONY: bench
bench: build servers ## the table of RESULTS.md, beside peers, in one run
	$(GO) run ./deploy/bench -out deploy/bench

.PHONY: ci-long
ci-long: build servers ## a slice of the long runs under fresh seeds, at most 30 minutes
	$(GO) run ./deploy/longrun -budget 6m
	$(GO) run ./deploy/longrun kills -binary $(abspath $(BIN)) -budget 4m
	$(GO) run ./deploy/longrun restore -binary $(abspath $(BIN)) -budget 6m

.PHONY: chaos
chaos: build servers ## kill, stop, cut off and fill up nodes, many times: deploy/chaos/RESULTS.md; as root, about an hour
	@deploy/chaos/tools.sh
	$(GO) run ./deploy/chaos -binary $(abspath $(BIN)) -results deploy/chaos/RESULTS.md

.PHONY: soak
soak: build servers ## twenty minutes of load with two minutes of history: bytes reach a plateau, reads inside are right, outside refused
	$(GO) run ./deploy/soak -binary $(abspath $(BIN)) -log deploy/soak/soak-15.log

.PHONY: loss
loss: build servers ## delete the data of two nodes of three, of all, and of all with the primary, under load: all is back, page by page and commit by commit
	$(GO) run ./deploy/longrun loss -binary $(abspath $(BIN)) -log deploy/longrun/loss-15.log

.PHONY: storefaults
storefaults: servers ## the store down, throttled, slow, cut short, denied, cut off from the leader alone; nodes and whole clusters paused and awake again; a disk budget: about six minutes
	$(GO) test -tags long -timeout 30m -run 'TestStoreFaults|TestPausedNodes|TestTakeover|TestRecoveredWithoutPassword|TestDiskBudget' -v ./deploy/e2e

.PHONY: longrun
longrun: build servers ## the long runs, resumable by their logs in deploy/longrun
	$(GO) run ./deploy/longrun -pages 2000000 -log deploy/longrun/verify-15.log
	$(GO) run ./deploy/longrun kills -binary $(abspath $(BIN)) -kills 100 -log deploy/longrun/kills-15.log
	$(GO) run ./deploy/longrun restore -binary $(abspath $(BIN)) -count 40 -log deploy/longrun/restore-15.log

.PHONY: redo-coverage
redo-coverage: servers ## what of redo was held against real servers, by record type: redo/COVERAGE.md; resumable
	$(GO) run ./deploy/coverage
