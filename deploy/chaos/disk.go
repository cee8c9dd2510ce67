package main

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// slowDisk is a directory mounted somewhere else, whose writes and fsyncs can be made slow: what a worn or overbooked disk does.
type slowDisk struct {
	server *fuse.Server
	delay  atomic.Int64 // of each write and fsync, a time.Duration
}

// mountSlowDisk shows what is in dir at mountpoint. Both must be there.
func mountSlowDisk(dir, mountpoint string) (*slowDisk, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	d := &slowDisk{}
	root := &fs.LoopbackRoot{Path: dir, Dev: st.Dev}
	top := &slowNode{LoopbackNode: &fs.LoopbackNode{RootData: root}, disk: d}
	root.RootNode = top
	var err error
	d.server, err = fs.Mount(mountpoint, top, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "everpage-chaos", MaxWrite: 1 << 20}})
	if err != nil {
		return nil, fmt.Errorf("mount a slow disk at %s: %w", mountpoint, err)
	}
	return d, nil
}

// close unmounts it. Nothing may be open there any more.
func (d *slowDisk) close() error {
	if err := d.server.Unmount(); err != nil {
		return err
	}
	d.server.Wait()
	return nil
}

func (d *slowDisk) wait() {
	if t := time.Duration(d.delay.Load()); t > 0 {
		time.Sleep(t) // this is the fault
	}
}

// slowNode is a file or directory there.
type slowNode struct {
	*fs.LoopbackNode
	disk *slowDisk
}

var (
	_ fs.NodeOpener      = (*slowNode)(nil)
	_ fs.NodeCreater     = (*slowNode)(nil)
	_ fs.NodeWrapChilder = (*slowNode)(nil)
)

// WrapChild makes what is below a directory slow, too.
func (n *slowNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	if below, ok := child.(*fs.LoopbackNode); ok {
		return &slowNode{LoopbackNode: below, disk: n.disk}
	}
	return child
}

func (n *slowNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, f, errno := n.LoopbackNode.Open(ctx, flags)
	return n.slow(h), f, errno
}

func (n *slowNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, h, f, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.slow(h), f, errno
}

func (n *slowNode) slow(h fs.FileHandle) fs.FileHandle {
	if f, ok := h.(*fs.LoopbackFile); ok {
		return &slowFile{LoopbackFile: f, disk: n.disk}
	}
	return h
}

type slowFile struct {
	*fs.LoopbackFile
	disk *slowDisk
}

// PassthroughFd would have the kernel go around this process.
func (f *slowFile) PassthroughFd() (int, bool) { return 0, false }

func (f *slowFile) Write(ctx context.Context, data []byte, at int64) (uint32, syscall.Errno) {
	f.disk.wait()
	return f.LoopbackFile.Write(ctx, data, at)
}

func (f *slowFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	f.disk.wait()
	return f.LoopbackFile.Fsync(ctx, flags)
}
