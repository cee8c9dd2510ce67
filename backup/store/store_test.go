package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"everpage/backup/store"
	"everpage/deploy/s3test"
)

// s3Server starts a server with a bucket and sets its keys for this process.
func s3Server(t *testing.T) *s3test.Server {
	t.Helper()
	s := s3test.New(t, t.TempDir())
	if err := s.Bucket("test"); err != nil {
		t.Fatal(err)
	}
	for _, e := range s.Env() {
		key, value, _ := strings.Cut(e, "=")
		t.Setenv(key, value)
	}
	return s
}

func open(t *testing.T, url string) store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFile(t *testing.T) { conform(t, open(t, "file://"+filepath.Join(t.TempDir(), "a", "b"))) }

func TestMemory(t *testing.T) { conform(t, store.NewMemory()) }

func TestS3(t *testing.T) {
	s := s3Server(t)
	opt := store.S3Options{Bucket: "test", Prefix: "some/place/", Endpoint: s.Endpoint(), PathStyle: true, PartSize: 5 << 20}
	st, err := store.OpenS3(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	conform(t, st)
	opt.Bucket = "absent"
	if st, err = store.OpenS3(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	// A bucket that isn't there must not look like an object that isn't: an inventory would take everything for lost.
	if err := st.Put(t.Context(), "a", store.Bytes(nil)); err == nil || errors.Is(err, store.ErrNotExist) {
		t.Errorf("put into an absent bucket: %v", err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	opt.Bucket = "test"
	if st, err = store.OpenS3(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"put": st.Put(t.Context(), "x", store.Bytes(nil)), "stat": fail2(st.Stat(t.Context(), "x")), "get": fail2(st.Get(t.Context(), "x", 0, -1)),
		"delete": st.Delete(t.Context(), "x"), "list": st.List(t.Context(), "", func(store.Info) error { return nil }),
	} {
		if !errors.Is(err, store.ErrAuth) {
			t.Errorf("%s with a wrong key: %v", what, err)
		}
	}
}

func fail2[T any](_ T, err error) error { return err }

// conform holds a store against what Store promises.
func conform(t *testing.T, s store.Store) {
	ctx := t.Context()
	body := []byte("all the pages of all the books")
	if err := s.Put(ctx, "a/b/c.1", store.Bytes(body)); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(ctx, "a/b/c.1", store.Bytes([]byte("another"))); !errors.Is(err, store.ErrExists) {
		t.Errorf("a second put: %v", err)
	}
	for _, c := range []struct {
		offset, length int64
		want           string
	}{{0, -1, string(body)}, {4, 3, "the"}, {4, -1, string(body[4:])}, {0, int64(len(body)), string(body)}, {int64(len(body)) - 1, 1, "s"}} {
		got, err := store.ReadAll(ctx, s, "a/b/c.1", c.offset, c.length)
		if err != nil || string(got) != c.want {
			t.Errorf("%d bytes at %d: %q, %v", c.length, c.offset, got, err)
		}
	}
	for _, c := range [][2]int64{{20, 100}, {100, 1}} {
		if _, err := store.ReadAll(ctx, s, "a/b/c.1", c[0], c[1]); !errors.Is(err, store.ErrTruncated) {
			t.Errorf("%d bytes at %d, which are not there: %v", c[1], c[0], err)
		}
	}
	if i, err := s.Stat(ctx, "a/b/c.1"); err != nil || i.Size != int64(len(body)) || i.Name != "a/b/c.1" || i.Modified.IsZero() {
		t.Errorf("stat: %+v, %v", i, err)
	}
	for _, name := range []string{"a/b/d", "a/b", "a/b/c.1/d"} {
		if _, err := s.Stat(ctx, name); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("stat of %s: %v", name, err)
		}
		if _, err := s.Get(ctx, name, 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("get of %s: %v", name, err)
		}
	}
	for _, name := range []string{"", "/a", "a/", "a//b", "../a", "a/./b", "a b", "ä", "a/.b", strings.Repeat("a", 1000)} {
		if err := s.Put(ctx, name, store.Bytes(nil)); !errors.Is(err, store.ErrName) {
			t.Errorf("put of %q: %v", name, err)
		}
	}
	large(t, s)
	list(t, s)
	race(t, s)
	if err := s.Put(ctx, "empty", store.Bytes(nil)); err != nil {
		t.Errorf("an empty object: %v", err)
	}
	if got, err := store.ReadAll(ctx, s, "empty", 0, -1); err != nil || len(got) != 0 {
		t.Errorf("an empty object: %q, %v", got, err)
	}
	for range 2 {
		if err := s.Delete(ctx, "a/b/c.1"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := s.Stat(ctx, "a/b/c.1"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("stat of what was deleted: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Put(ended, "late", store.Bytes(body)); !errors.Is(err, context.Canceled) {
		t.Errorf("put without time: %v", err)
	}
	if _, err := s.Stat(ctx, "late"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("a put without time left: %v", err)
	}
}

func large(t *testing.T, s store.Store) {
	b := make([]byte, 12<<20+3)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	for _, again := range []bool{false, true} {
		if err := s.Put(t.Context(), "large", store.Bytes(b)); err != nil != again || again && !errors.Is(err, store.ErrExists) {
			t.Fatalf("put of %d bytes, again %v: %v", len(b), again, err)
		}
	}
	got, err := store.ReadAll(t.Context(), s, "large", 0, -1)
	if err != nil || !bytes.Equal(got, b) {
		t.Errorf("a large object: %d bytes, %v", len(got), err)
	}
	if got, err = store.ReadAll(t.Context(), s, "large", 5<<20-1, 2<<20); err != nil || !bytes.Equal(got, b[5<<20-1:7<<20-1]) {
		t.Errorf("a part of a large object: %d bytes, %v", len(got), err)
	}
}

func list(t *testing.T, s store.Store) {
	const n = 1100 // more than one page of a listing
	var wg sync.WaitGroup
	for k := range 20 {
		wg.Go(func() {
			for i := k; i < n; i += 20 {
				if err := s.Put(t.Context(), fmt.Sprintf("list/%02d/%04d", i%7, i), store.Bytes([]byte{1, 2})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for prefix, want := range map[string]int{"list/": n, "list/0": n, "list/03/": 157, "list/03/001": 2, "nothing": 0, "nothing/at/all": 0} {
		got, last := 0, ""
		err := s.List(t.Context(), prefix, func(i store.Info) error {
			if i.Name <= last || i.Size != 2 || !strings.HasPrefix(i.Name, prefix) {
				t.Errorf("list of %q: %+v behind %q", prefix, i, last)
			}
			last = i.Name
			got++
			return nil
		})
		if err != nil || got != want {
			t.Errorf("list of %q: %d objects, %v, want %d", prefix, got, err, want)
		}
	}
	enough := errors.New("enough")
	if err := s.List(t.Context(), "list/", func(store.Info) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a list that is ended: %v", err)
	}
}

// race lets many write one name: one of them wins, the others are told.
func race(t *testing.T, s store.Store) {
	for _, size := range []int{10, 6 << 20} {
		name := fmt.Sprintf("race/%d", size)
		var wg sync.WaitGroup
		var mu sync.Mutex
		var winners []byte
		for i := range 6 {
			wg.Go(func() {
				err := s.Put(t.Context(), name, store.Bytes(bytes.Repeat([]byte{byte(i)}, size)))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					winners = append(winners, byte(i))
				} else if !errors.Is(err, store.ErrExists) {
					t.Errorf("a race for %s: %v", name, err)
				}
			})
		}
		wg.Wait()
		got, err := store.ReadAll(t.Context(), s, name, 0, -1)
		if err != nil || len(winners) != 1 || !bytes.Equal(got, bytes.Repeat(winners, size)) {
			t.Errorf("a race for %s: %d winners, %d bytes, %v", name, len(winners), len(got), err)
		}
	}
}

func TestOpen(t *testing.T) {
	for _, url := range []string{"", "/dir", "file://host/dir", "file:", "s3://", "s3://b?x=1", "s3://user:key@b/", "s3://b/a//b", "s3://b?path-style=maybe", "http://b", "file:///a?b=c"} {
		if s, err := store.Open(t.Context(), url); err == nil {
			t.Errorf("%q became %s", url, s)
		}
	}
	s, err := store.Open(t.Context(), "s3://bucket/a/b?endpoint=http://127.0.0.1:1&region=eu-central-1&storage-class=STANDARD_IA&sse=aws:kms&sse-key=k")
	if err != nil || s.String() != "s3://bucket/a/b/" {
		t.Errorf("%v, %v", s, err)
	}
}

func TestCustomCA(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("body")) }))
	defer server.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	url := "s3://b?endpoint=" + server.URL
	if _, err := store.Open(t.Context(), url+"&ca="+path); err == nil {
		t.Error("a file without certificates was taken")
	}
	if err := os.WriteFile(path, pemOf(server), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := store.ReadAll(t.Context(), open(t, url+"&ca="+path), "a", 0, -1); err != nil || string(b) != "body" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestServiceFaults holds the client against a service that misbehaves as real ones do.
func TestServiceFaults(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "a")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	var calls int
	var answer func(w http.ResponseWriter, r *http.Request)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		io.Copy(io.Discard, r.Body)
		answer(w, r)
	}))
	defer server.Close()
	s, err := store.OpenS3(t.Context(), store.S3Options{Bucket: "b", Endpoint: server.URL, PathStyle: true, Attempts: 3, Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	status := func(code int) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code) }
	}
	for _, c := range []struct {
		code, calls int
		kind        error
	}{{503, 3, store.ErrThrottled}, {500, 3, store.ErrUnavailable}, {403, 1, store.ErrAuth}, {412, 1, store.ErrExists}} {
		calls, answer = 0, status(c.code)
		if err := s.Put(t.Context(), "x", store.Bytes([]byte("abc"))); !errors.Is(err, c.kind) || calls != c.calls {
			t.Errorf("status %d: %v after %d calls", c.code, err, calls)
		}
	}
	calls = 0
	answer = func(w http.ResponseWriter, r *http.Request) {
		if calls < 3 {
			w.WriteHeader(503)
		}
	}
	if err := s.Put(t.Context(), "x", store.Bytes([]byte("abc"))); err != nil {
		t.Errorf("two 503, then 200: %v", err)
	}
	answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write(make([]byte, 50))
	}
	if _, err := store.ReadAll(t.Context(), s, "x", 0, -1); !errors.Is(err, store.ErrTruncated) {
		t.Errorf("a body cut in the middle: %v", err)
	}
	answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write(make([]byte, 50))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
	hasty, err := store.OpenS3(t.Context(), store.S3Options{Bucket: "b", Endpoint: server.URL, PathStyle: true, Stall: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.ReadAll(t.Context(), hasty, "x", 0, -1); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "sends nothing any more") {
		t.Errorf("a body that stops coming: %v", err)
	}
	answer = func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 100)) }
	if _, err := store.ReadAll(t.Context(), s, "x", 10, 20); err == nil {
		t.Error("a service that ignores ranges was believed")
	}
	const listing = `<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>x</Key><Size>1</Size></Contents></ListBucketResult>`
	cut := 2
	answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(listing)))
		if calls <= cut {
			w.Write([]byte(listing[:len(listing)/2]))
			return
		}
		w.Write([]byte(listing))
	}
	calls = 0
	var names []string
	name := func(i store.Info) error { names = append(names, i.Name); return nil }
	if err := s.List(t.Context(), "", name); err != nil || len(names) != 1 || calls != 3 {
		t.Errorf("a listing that is cut twice: %v, %v, %d calls", names, err, calls)
	}
	calls, cut, names = 0, 100, nil
	if err := s.List(t.Context(), "", name); !errors.Is(err, store.ErrUnavailable) || len(names) != 0 || calls != 3 {
		t.Errorf("a listing that is always cut: %v, %v, %d calls", names, err, calls)
	}
	server.Close()
	if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a service that is gone: %v", err)
	}
}

func TestCountAndFaults(t *testing.T) {
	calls := 0
	var fault store.Fault
	c := store.Count(open(t, "file://"+t.TempDir()))
	s := &store.Faulty{Store: c, Decide: func(op, name string) store.Fault { calls++; return fault }}
	fault = store.Fault{Err: store.ErrInjected}
	if err := s.Put(t.Context(), "a", store.Bytes([]byte("12345678"))); !errors.Is(err, store.ErrInjected) {
		t.Error(err)
	}
	fault = store.Fault{After: store.ErrInjected}
	if err := s.Put(t.Context(), "a", store.Bytes([]byte("12345678"))); !errors.Is(err, store.ErrInjected) {
		t.Error(err)
	}
	fault = store.Fault{Truncate: true}
	if b, err := store.ReadAll(t.Context(), s, "a", 0, -1); !errors.Is(err, store.ErrTruncated) {
		t.Error(string(b), err)
	}
	fault = store.Fault{Flip: true}
	if b, err := store.ReadAll(t.Context(), s, "a", 0, -1); err != nil || string(b) == "12345678" {
		t.Error(string(b), err)
	}
	fault = store.Fault{}
	if b, err := store.ReadAll(t.Context(), s, "a", 0, -1); err != nil || string(b) != "12345678" {
		t.Error(string(b), err)
	}
	if err := s.List(t.Context(), "", func(store.Info) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, store.ErrNotExist) {
		t.Error(err)
	}
	u := c.Usage()
	if u != (store.Usage{Puts: 1, Gets: 3, Stats: 1, Deletes: 1, Lists: 1, Failures: 1, Uploaded: 8, Downloaded: 24}) || u.Requests() != 7 || calls != 8 {
		t.Errorf("%+v, %d requests, %d calls", u, u.Requests(), calls)
	}
}
