// Package s3test runs a real S3 server, versitygw over a directory, on the loopback interface.
package s3test

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"everpage/deploy/pgtest"
	"everpage/deploy/postgres"
)

//go:embed fetch.sh
var script string

// Fetch returns the server's binary, building it first when it is absent.
func Fetch(ctx context.Context) (string, error) {
	cache, err := postgres.CacheDir(ctx)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", script, "fetch.sh", cache)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("fetch the S3 server: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Keys of the server's only user.
const (
	AccessKey = "everpagetest"
	SecretKey = "everpagetestsecret"
)

// Server is a running S3 server.
type Server struct {
	binary, dir, address string
	held                 *pgtest.Port // of address, while the server is down, too
	mu                   sync.Mutex
	cmd                  *exec.Cmd
	done                 chan struct{}
	log                  bytes.Buffer
}

// Start starts a server whose buckets are the directories below dir. It ends with this process.
func Start(ctx context.Context, dir string) (*Server, error) {
	binary, err := Fetch(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"data", "meta"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	s := &Server{binary: binary, dir: dir}
	return s, s.StartAgain(ctx)
}

// New starts a server for a test and ends it with the test.
func New(tb pgtest.TB, dir string) *Server {
	tb.Helper()
	s, err := Start(tb.Context(), dir)
	if err != nil {
		tb.Fatalf("start the S3 server: %v", err)
	}
	tb.Cleanup(s.Kill)
	return s
}

// Bucket makes a bucket.
func (s *Server) Bucket(name string) error {
	return os.MkdirAll(filepath.Join(s.dir, "data", name), 0o755)
}

// Path is where an object's bytes lie, to damage them.
func (s *Server) Path(bucket, object string) string {
	return filepath.Join(s.dir, "data", bucket, object)
}

// Endpoint is the server's URL.
func (s *Server) Endpoint() string { return "http://" + s.address }

// URL names a place in a bucket as everpage's --store does.
func (s *Server) URL(bucket, prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&region=us-east-1", bucket, prefix, s.Endpoint())
}

// Env is the environment with the server's keys.
func (s *Server) Env() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + AccessKey, "AWS_SECRET_ACCESS_KEY=" + SecretKey, "AWS_EC2_METADATA_DISABLED=true"}
}

const readyTimeout = 30 * time.Second

// StartAgain starts a server that was killed, at the same address.
func (s *Server) StartAgain(ctx context.Context) error {
	if s.held == nil {
		held, err := pgtest.HoldPort("127.0.0.1")
		if err != nil {
			return err
		}
		s.held, s.address = held, fmt.Sprintf("127.0.0.1:%d", held.Number)
	}
	cmd := exec.Command(s.binary, "--port", s.address, "--access", AccessKey, "--secret", SecretKey, "--quiet",
		"posix", "--sidecar", filepath.Join(s.dir, "meta"), filepath.Join(s.dir, "data"))
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + s.dir}
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started, done := make(chan error, 1), make(chan struct{})
	go func() { // Pdeathsig is bound to the thread that starts the process
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	deadline := time.NewTimer(readyTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.DialTimeout("tcp", s.address, time.Second); err == nil {
			return c.Close()
		}
		select {
		case <-done:
			return fmt.Errorf("the S3 server ended:\n%s", s.log.String())
		case <-deadline.C:
			s.Kill()
			return fmt.Errorf("the S3 server was not up after %s", readyTimeout)
		case <-ctx.Done():
			s.Kill()
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Kill ends the server and waits until it is gone.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		s.cmd.Process.Kill()
		<-s.done
		s.cmd = nil
	}
}
