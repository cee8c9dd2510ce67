package pg_test

import (
	"os"
	"syscall"
	"testing"
)

// own gives dir the owner of model, which is the server's user.
func own(t *testing.T, model, dir string) {
	t.Helper()
	info, err := os.Stat(model)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if err := os.Chown(dir, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
}
