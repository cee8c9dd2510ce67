package pgtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv is the whole environment of what is started here, so that a PG* variable of the caller changes nothing.
func childEnv(home string) []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=" + home}
}

// process is a running postmaster.
type process struct {
	pid  int
	done chan struct{} // closed once the process is gone and err is set
	err  error         // how it ended; nil for exit status 0
}

// spawn starts cmd so that the kernel sends it SIGQUIT, PostgreSQL's immediate shutdown, when this process dies. Linux ties
// that signal to the thread that forked, so one goroutine keeps its thread until the child has ended.
func spawn(cmd *exec.Cmd) (*process, error) {
	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// wait waits for the process to end.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("postmaster %d has not ended: %w", p.pid, context.Cause(ctx))
	}
}

// kill9 kills the process and all its descendants with SIGKILL, the postmaster stopped first so that it starts no new
// ones and reacts to no child's death, and waits until all are gone.
func (p *process) kill9(ctx context.Context) error {
	if !p.running() {
		return nil
	}
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop postmaster %d: %w", p.pid, err)
	}
	children, err := descendants(p.pid)
	if err != nil {
		return err
	}
	for _, pid := range append(children, p.pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	if err := p.wait(ctx); err != nil {
		return err
	}
	for _, pid := range children {
		err := poll(ctx, func() (bool, error) { return !alive(pid), nil })
		if err != nil {
			return fmt.Errorf("process %d of the killed server has not ended: %w", pid, err)
		}
	}
	return nil
}

// descendants returns the children of pid, their children and so on.
func descendants(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, _, ok := procStat(child); ok {
			children[parent] = append(children[parent], child)
		}
	}
	var all []int
	for next := children[pid]; len(next) > 0; {
		child := next[0]
		all = append(all, child)
		next = append(next[1:], children[child]...)
	}
	return all, nil
}

// alive tells whether a process still runs; a zombie that nobody has waited for does not.
func alive(pid int) bool {
	_, state, ok := procStat(pid)
	return ok && state != "Z" && state != "X"
}

func procStat(pid int) (parent int, state string, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", false
	}
	// The second field is the program's name in brackets and may itself hold brackets and blanks.
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 2 {
		return 0, "", false
	}
	parent, err = strconv.Atoi(fields[1])
	return parent, fields[0], err == nil
}

// poll calls done every few milliseconds until it returns true or an error or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// removeSharedMemory frees the System V segment that a killed postmaster left: only one that nobody is attached to and
// that the process named in its postmaster.pid created.
func removeSharedMemory(pidFile string) error {
	b, err := os.ReadFile(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := strings.Split(string(b), "\n")
	const shmemLine = 6 // "key id" is line 7 of postmaster.pid
	if len(lines) <= shmemLine {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	fields := strings.Fields(lines[shmemLine])
	if err != nil || len(fields) != 2 {
		return nil
	}
	id, err := strconv.Atoi(fields[1])
	if err != nil {
		return nil
	}
	var info unix.SysvShmDesc
	if _, err := unix.SysvShmCtl(id, unix.IPC_STAT, &info); err != nil {
		return nil // gone already
	}
	if info.Nattch != 0 || int(info.Cpid) != pid {
		return nil
	}
	if _, err := unix.SysvShmCtl(id, unix.IPC_RMID, nil); err != nil {
		return fmt.Errorf("remove shared memory segment %d of the killed server: %w", id, err)
	}
	return nil
}
