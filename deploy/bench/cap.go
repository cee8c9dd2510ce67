package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cpuCap is a control group that gives a process a part of one core.
type cpuCap struct{ dir string }

const (
	cgroupV1 = "/sys/fs/cgroup/cpu"
	cgroupV2 = "/sys/fs/cgroup"
	// A short period, so that a process at its limit is slow and does not stand still for long.
	capPeriod = 10_000 // µs
)

// capCPU caps a process, and all that it starts from then on, to a percentage of one core. It needs root and a cgroup file system that may be written.
func capCPU(pid, percent int) (cpuCap, error) {
	quota := capPeriod * percent / 100
	var c cpuCap
	var limits [][2]string
	if _, err := os.Stat(filepath.Join(cgroupV1, "cpu.cfs_quota_us")); err == nil {
		c.dir = filepath.Join(cgroupV1, fmt.Sprintf("everpage-bench-%d", pid))
		limits = [][2]string{{"cpu.cfs_period_us", strconv.Itoa(capPeriod)}, {"cpu.cfs_quota_us", strconv.Itoa(quota)}}
	} else {
		c.dir = filepath.Join(cgroupV2, fmt.Sprintf("everpage-bench-%d", pid))
		limits = [][2]string{{"cpu.max", fmt.Sprintf("%d %d", quota, capPeriod)}}
	}
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		return cpuCap{}, err
	}
	for _, l := range append(limits, [2]string{"cgroup.procs", strconv.Itoa(pid)}) {
		if err := os.WriteFile(filepath.Join(c.dir, l[0]), []byte(l[1]), 0o644); err != nil {
			return cpuCap{}, errors.Join(err, c.remove())
		}
	}
	return c, nil
}

// remove takes the group away, once its process has ended.
func (c cpuCap) remove() error {
	if c.dir == "" {
		return nil
	}
	return os.Remove(c.dir)
}

// cpuSeconds is the CPU time that a process has used.
func cpuSeconds(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name may have spaces
	f := strings.Fields(rest)
	const utime, stime, perSecond = 11, 12, 100
	if len(f) <= stime {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	user, err := strconv.ParseFloat(f[utime], 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(f[stime], 64)
	return (user + system) / perSecond, err
}
