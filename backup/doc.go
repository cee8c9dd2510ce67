// Package backup keeps a cluster's history in a store: its WAL, layers of page versions, and manifests that say which layers make a shard. What it
// needs of the cluster, of the version store and of the primary it declares as interfaces.
package backup
