package fsm

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"everpage/cluster/catalog"
	"everpage/cluster/command"
)

// FSM holds the newest State of this node and is what Raft drives.
type FSM struct {
	state atomic.Pointer[State]

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when the state changes
	failed  chan struct{} // closed when the log can't be followed any more
	err     error
}

// New starts from a state; nil is the empty one.
func New(s *State) *FSM {
	f := &FSM{changed: make(chan struct{}), failed: make(chan struct{})}
	if s == nil {
		s = &State{}
	}
	f.state.Store(s)
	return f
}

// State is the newest state, which never changes itself.
func (f *FSM) State() *State { return f.state.Load() }

// Watch is the newest state and a channel that is closed when there is a newer one.
func (f *FSM) Watch() (*State, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Load(), f.changed
}

// Failed is closed when the log has something that this release can't apply: the node must stop. Err says what.
func (f *FSM) Failed() <-chan struct{} { return f.failed }

// Err is why Failed is closed.
func (f *FSM) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Outcome is what Apply returns: a command's result in JSON, or why it was refused.
type Outcome struct {
	Index   uint64
	Result  []byte
	Refused string
	Err     error // the command can't be carried out by this release
}

// Apply implements raft.FSM.
func (f *FSM) Apply(l *raft.Log) any {
	if err := f.Err(); err != nil { // nothing is applied behind what was not
		return Outcome{Index: l.Index, Err: err}
	}
	c, err := command.Decode(l.Data)
	if err != nil {
		return Outcome{Index: l.Index, Err: f.fail(fmt.Errorf("entry %d: %w", l.Index, err))}
	}
	next, result, err := f.State().Apply(l.Index, c)
	var refused *Refused
	if err != nil && !errors.As(err, &refused) {
		return Outcome{Index: l.Index, Err: f.fail(fmt.Errorf("entry %d: %w", l.Index, err))}
	}
	f.publish(next)
	if refused != nil {
		return Outcome{Index: l.Index, Refused: refused.Reason}
	}
	o := Outcome{Index: l.Index}
	if result != nil {
		o.Result, o.Err = json.Marshal(result)
	}
	return o
}

func (f *FSM) publish(s *State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Store(s)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *FSM) fail(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
		close(f.failed)
	}
	return f.err
}

// Snapshot implements raft.FSM. States don't change, so it is free.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) { return snapshot{f.State()}, f.Err() }

// Restore implements raft.FSM.
func (f *FSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	s, err := Read(r)
	if err != nil {
		return f.fail(err)
	}
	f.publish(s)
	return nil
}

type snapshot struct{ s *State }

func (p snapshot) Persist(sink raft.SnapshotSink) error {
	if err := p.s.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (snapshot) Release() {}

// snapshotVersion is raised when an older release can't read a snapshot any more. 1 had no inventory, 2 no age of collected objects.
const snapshotVersion = 3

// Write writes a state: a line that names its version, a line of JSON, and the inventory.
func (s *State) Write(w io.Writer) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "everpage cluster state %d\n%s\n", snapshotVersion, b); err != nil {
		return err
	}
	_, err = s.inventory().WriteTo(w)
	return err
}

// Read reads what Write wrote, or an older release.
func Read(in io.Reader) (*State, error) {
	r := bufio.NewReaderSize(in, 1<<16)
	head, err := r.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("not a state of a cluster: %w", err)
	}
	var version int
	if _, err := fmt.Sscanf(head, "everpage cluster state %d", &version); err != nil {
		return nil, errors.New("not a state of a cluster")
	}
	if version > snapshotVersion {
		return nil, &command.UnknownError{What: "snapshot version", Got: uint64(version), Known: snapshotVersion}
	}
	body, err := r.ReadBytes('\n')
	if err != nil && (version > 1 || !errors.Is(err, io.EOF)) {
		return nil, fmt.Errorf("state of a cluster: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	s := &State{}
	if err := d.Decode(s); err != nil {
		return nil, fmt.Errorf("state of a cluster: %w", err)
	}
	if version == 1 {
		return s, nil
	}
	if s.Inventory, err = catalog.Read(r); err != nil {
		return nil, fmt.Errorf("state of a cluster: %w", err)
	}
	return s, nil
}

// Encode is Write into memory.
func (s *State) Encode() ([]byte, error) {
	var b bytes.Buffer
	err := s.Write(&b)
	return b.Bytes(), err
}

// Decode reads what Encode made.
func Decode(b []byte) (*State, error) { return Read(bytes.NewReader(b)) }
