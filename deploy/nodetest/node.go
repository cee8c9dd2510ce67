// Package nodetest runs real everpage nodes, as processes, for tests, the demo and the benchmark.
package nodetest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"everpage/deploy/pgtest"
)

// Build makes the everpage binary in dir and returns its path.
func Build(ctx context.Context, dir string) (string, error) {
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("where the sources are is not known")
	}
	binary := filepath.Join(dir, "everpage")
	cmd := exec.CommandContext(ctx, "go", "build", "-pgo=off", "-o", binary, "./cmd/everpage")
	cmd.Dir = filepath.Join(filepath.Dir(self), "..", "..")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build everpage: %w\n%s", err, out)
	}
	return binary, nil
}

// Config says how a node runs.
type Config struct {
	Binary string   // made by Build
	Data   string   // its data directory
	Args   []string // more arguments of serve
	Env    []string // added to the environment
	// Command, where set, is put before the binary: a wrapper such as a limit.
	Command []string
	Host    string // address to listen on; empty: 127.0.0.1
}

// Node is a node that was started.
type Node struct {
	cfg     Config
	cmd     *exec.Cmd
	address string
	held    *pgtest.Port // of address, while the node is down, too; nil where it is of another network namespace
	log     *logBuffer
	done    chan struct{}
	err     error // of the process, once done is closed
}

var listenRE = regexp.MustCompile(`msg="node is up".* listen=(\S+)`)

const readyTimeout = time.Minute

// Start starts a node on a free port and waits until it answers. It ends with this process.
func Start(ctx context.Context, cfg Config) (*Node, error) {
	n := &Node{cfg: cfg, log: &logBuffer{}}
	return n, n.StartAgain(ctx)
}

// New starts a node for a test and kills it with the test; a failed test gets the end of its log.
func New(tb pgtest.TB, cfg Config) *Node {
	tb.Helper()
	n, err := Start(tb.Context(), cfg)
	if err != nil {
		tb.Fatalf("start everpage: %v", err)
	}
	tb.Cleanup(func() {
		n.Kill9()
		if tb.Failed() {
			tb.Logf("log of the node at %s:\n%s", n.address, n.Log())
		}
	})
	return n
}

// StartAgain starts a node that was stopped or killed, on the same data directory and port.
func (n *Node) StartAgain(ctx context.Context) error {
	host := cmp.Or(n.cfg.Host, "127.0.0.1")
	free := net.JoinHostPort(host, "0")
	if n.address == "" {
		held, err := pgtest.HoldPort(host)
		switch {
		case err == nil:
			n.held, n.address = held, net.JoinHostPort(host, strconv.Itoa(held.Number))
		case !errors.Is(err, syscall.EADDRNOTAVAIL):
			return err
		}
	}
	listen := cmp.Or(n.address, free)
	args := append([]string{}, n.cfg.Command...)
	args = append(args, n.cfg.Binary, "serve", "--data", n.cfg.Data, "--listen", listen, "--http", "", "--raft", free, "--gossip", free)
	args = append(args, n.cfg.Args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), n.cfg.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	started := make(chan error, 1)
	up := make(chan string, 1)
	done := make(chan struct{})
	go func() { // Pdeathsig is bound to the thread that starts the process
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			close(done)
			return
		}
		started <- nil
		n.readLog(stderr, up)
		n.err = cmd.Wait()
		close(done)
	}()
	if err := <-started; err != nil {
		return err
	}
	n.cmd, n.done = cmd, done
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	select {
	case n.address = <-up:
		return nil
	case <-done:
		return fmt.Errorf("the node ended: %v\n%s", n.err, n.Log())
	case <-timeout.C:
		n.Kill9()
		return fmt.Errorf("the node was not up after %s\n%s", readyTimeout, n.Log())
	case <-ctx.Done():
		n.Kill9()
		return ctx.Err()
	}
}

func (n *Node) readLog(r io.Reader, up chan<- string) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		n.log.add(s.Text())
		if m := listenRE.FindStringSubmatch(s.Text()); m != nil {
			select {
			case up <- m[1]:
			default:
			}
		}
	}
}

// Address is where the node answers.
func (n *Node) Address() string { return n.address }

// Data is its data directory.
func (n *Node) Data() string { return n.cfg.Data }

// Pid is its process id.
func (n *Node) Pid() int { return n.cmd.Process.Pid }

// Log is the end of what it logged.
func (n *Node) Log() string { return n.log.String() }

// Done is closed when the process has ended.
func (n *Node) Done() <-chan struct{} { return n.done }

// SetArgs gives other arguments of serve to the next start.
func (n *Node) SetArgs(args ...string) { n.cfg.Args = args }

// Move has the next start listen at another host, on other ports.
func (n *Node) Move(host string) {
	n.held.Release()
	n.held, n.cfg.Host, n.address = nil, host, ""
}

// Signal sends the node's process a signal.
func (n *Node) Signal(s syscall.Signal) error { return n.cmd.Process.Signal(s) }

// Kill9 ends the node as a loss of power would, and waits until it is gone.
func (n *Node) Kill9() {
	select {
	case <-n.done:
	default:
		n.cmd.Process.Kill()
		<-n.done
	}
}

// Stop asks the node to stop and waits for its end, which must be orderly.
func (n *Node) Stop() error {
	n.cmd.Process.Signal(syscall.SIGTERM)
	<-n.done
	return n.err
}

// Result is what a command printed.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Run runs an everpage command against the node.
func (n *Node) Run(ctx context.Context, args ...string) Result {
	cmd := exec.CommandContext(ctx, n.cfg.Binary, append([]string{"--server", n.address}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code, r.Stderr = -1, err.Error()
	}
	return r
}

// Must runs a command that has to succeed and returns what it printed.
func (n *Node) Must(tb pgtest.TB, args ...string) string {
	tb.Helper()
	r := n.Run(tb.Context(), args...)
	if r.Code != 0 {
		tb.Fatalf("everpage %s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// JSON runs a command with -o json and decodes what it printed.
func (n *Node) JSON(ctx context.Context, into any, args ...string) error {
	r := n.Run(ctx, append(args, "-o", "json")...)
	if r.Code != 0 {
		return fmt.Errorf("everpage %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return json.Unmarshal([]byte(r.Stdout), into)
}

// Follow is the part of status that tests look at.
type Follow struct {
	State      string   `json:"state"`
	Message    string   `json:"message"`
	Primary    string   `json:"primary_lsn"`
	Received   string   `json:"received_lsn"`
	Durable    string   `json:"durable_lsn"`
	Readable   string   `json:"readable_lsn"`
	Consistent string   `json:"consistent_lsn"`
	Warnings   []string `json:"warnings"`
}

// Status asks the node how following goes.
func (n *Node) Status(ctx context.Context) (Follow, error) {
	var v struct{ Follow Follow }
	err := n.JSON(ctx, &v, "status")
	return v.Follow, err
}

// logBuffer keeps the last lines of a log.
type logBuffer struct {
	mu    sync.Mutex
	lines []string
}

const logLines = 200

func (l *logBuffer) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) == logLines {
		l.lines = append(l.lines[:0], l.lines[1:]...)
	}
	l.lines = append(l.lines, line)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}
