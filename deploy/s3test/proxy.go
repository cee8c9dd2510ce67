package s3test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"everpage/deploy/pgtest"
)

// Fault is what happens to one request on its way. The zero Fault is none.
type Fault struct {
	Delay    time.Duration // before it is passed on
	Status   int           // answered in place of the server: 503, 403, …
	Reset    bool          // the connection ends before the server is asked
	Lost     bool          // the server is asked, its answer does not arrive
	Truncate bool          // half of the answer's body arrives
}

// Proxy stands between S3 clients and a server and does harm on purpose.
type Proxy struct {
	server   *Server
	address  string
	mu       sync.Mutex
	decide   func(r *http.Request) Fault
	requests int
	faults   int
	bytes    int64 // of answers' bodies
}

// NewProxy starts a proxy for a test.
func NewProxy(tb pgtest.TB, s *Server) *Proxy {
	tb.Helper()
	p, stop, err := StartProxy(s)
	if err != nil {
		tb.Fatalf("start the fault proxy: %v", err)
	}
	tb.Cleanup(stop)
	return p
}

// StartProxy starts a proxy, which runs until stop.
func StartProxy(s *Server) (p *Proxy, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	target, err := url.Parse(s.Endpoint())
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	p = &Proxy{server: s, address: l.Addr().String()}
	pass := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is part of what was signed
		},
		ModifyResponse: p.answer,
		ErrorLog:       log.New(io.Discard, "", 0),                                                      // it would tell of each harm that is done on purpose
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // the client sees its connection end
		Transport:      &http.Transport{MaxIdleConnsPerHost: 32, DisableCompression: true},
	}
	h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, pass) }), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Serve(l)
	}()
	return p, func() { h.Close(); <-done }, nil
}

// Decide sets what is done with requests from now on; nil: nothing.
func (p *Proxy) Decide(fn func(r *http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.decide = fn
}

// Seen tells how many requests came, to how many something was done, and how many bytes of answers were passed on.
func (p *Proxy) Seen() (requests, faults int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests, p.faults, p.bytes
}

// URL names a place in a bucket as everpage's --store does, through the proxy.
func (p *Proxy) URL(bucket, prefix string) string {
	return strings.Replace(p.server.URL(bucket, prefix), p.server.Endpoint(), "http://"+p.address, 1)
}

type faultKey struct{}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request, pass http.Handler) {
	var f Fault
	p.mu.Lock()
	p.requests++
	if p.decide != nil {
		f = p.decide(r)
	}
	if f != (Fault{}) {
		p.faults++
	}
	p.mu.Unlock()
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case f.Reset:
		panic(http.ErrAbortHandler)
	case f.Status != 0:
		code := map[int]string{http.StatusServiceUnavailable: "SlowDown", http.StatusForbidden: "AccessDenied", http.StatusInternalServerError: "InternalError"}[f.Status]
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.Status)
		fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>on purpose</Message></Error>", code)
		return
	}
	pass.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), faultKey{}, f)))
}

// answer does to an answer what was decided for its request.
func (p *Proxy) answer(r *http.Response) error {
	f, _ := r.Request.Context().Value(faultKey{}).(Fault)
	if f.Lost {
		return errors.New("lost on purpose")
	}
	limit := int64(-1)
	if f.Truncate && r.ContentLength > 1 {
		limit = r.ContentLength / 2
	}
	r.Body = &body{ReadCloser: r.Body, p: p, left: limit}
	return nil
}

// body counts what is passed on of an answer, and ends early where that was decided.
type body struct {
	io.ReadCloser
	p    *Proxy
	left int64 // -1: all
}

func (b *body) Read(buf []byte) (int, error) {
	if b.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if b.left > 0 {
		buf = buf[:min(int64(len(buf)), b.left)]
	}
	n, err := b.ReadCloser.Read(buf)
	if b.left > 0 {
		b.left -= int64(n)
	}
	b.p.mu.Lock()
	b.p.bytes += int64(n)
	b.p.mu.Unlock()
	return n, err
}
