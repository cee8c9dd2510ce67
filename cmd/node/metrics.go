package node

import (
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// collector reads the node's state when it is scraped.
type collector struct {
	n     *Node
	descs map[string]*prometheus.Desc
}

var metricHelp = map[string]string{
	"everpage_primary_lsn_bytes":      "End of the primary's WAL as last told.",
	"everpage_received_lsn_bytes":     "End of the WAL received.",
	"everpage_durable_lsn_bytes":      "End of the WAL fsynced and acknowledged.",
	"everpage_readable_lsn_bytes":     "LSN up to which pages can be read.",
	"everpage_stored_lsn_bytes":       "LSN up to which versions are durable in the store.",
	"everpage_wal_records_total":      "WAL records ingested since the start.",
	"everpage_store_bytes":            "Bytes of the store on disk.",
	"everpage_run_bytes":              "Bytes of versions in memory that are not yet in a table.",
	"everpage_flushes_total":          "Runs that became tables.",
	"everpage_chain_images_total":     "Images added to bound chains of deltas.",
	"everpage_block_cache_hits_total": "Hits of the store's block cache.",
	"everpage_block_cache_miss_total": "Misses of the store's block cache.",
	"everpage_following":              "1 while WAL streams from the primary.",
}

func newCollector(n *Node) *collector {
	c := &collector{n: n, descs: map[string]*prometheus.Desc{}}
	for name, help := range metricHelp {
		c.descs[name] = prometheus.NewDesc(name, help, nil, nil)
	}
	return c
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	f, st := c.n.follow.status(), c.n.store.Stats()
	gauge := func(name string, v float64) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.GaugeValue, v)
	}
	counter := func(name string, v float64) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.CounterValue, v)
	}
	gauge("everpage_primary_lsn_bytes", float64(f.PrimaryLsn))
	gauge("everpage_received_lsn_bytes", float64(f.ReceivedLsn))
	gauge("everpage_durable_lsn_bytes", float64(f.DurableLsn))
	gauge("everpage_readable_lsn_bytes", float64(f.ReadableLsn))
	gauge("everpage_stored_lsn_bytes", float64(f.StoredLsn))
	counter("everpage_wal_records_total", float64(f.Records))
	gauge("everpage_store_bytes", float64(st.DiskBytes))
	gauge("everpage_run_bytes", float64(st.RunBytes))
	counter("everpage_flushes_total", float64(st.Flushes))
	counter("everpage_chain_images_total", float64(st.Images))
	counter("everpage_block_cache_hits_total", float64(st.CacheHits))
	counter("everpage_block_cache_miss_total", float64(st.CacheMisses))
	following := 0.0
	if f.State == stateStreaming {
		following = 1
	}
	gauge("everpage_following", following)
}

func (n *Node) httpHandler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(newCollector(n), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		f := n.follow.status()
		if f.State == stateStopped {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, f.State)
	})
	return mux
}
