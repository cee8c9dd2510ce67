package node

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// timeLayout prints times for people.
const timeLayout = "2006-01-02 15:04:05.999999-07"

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

// rss is this process's resident memory in bytes, 0 where the system doesn't tell.
func rss() uint64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(f[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}
