package placement

import "fmt"

// Load is what one replica of something costs the node that keeps it.
type Load struct {
	Bytes uint64
	Work  uint64 // versions written and pages read a second, or any other measure that is the same everywhere
}

// Usage is what was measured. What is missing counts as nothing; without any of it replicas are spread by number.
type Usage struct {
	Shards []Load         // by shard, with all chunks of it
	Chunks map[Chunk]Load // the chunks that stand out
}

// Policy bounds what a plan does.
type Policy struct {
	PerNode int     // moves that one node takes part in at a time
	Total   int     // moves in flight at a time
	Slack   float64 // how far two nodes may differ, as a part of the mean, before something moves for balance alone

	// A chunk that makes more than Apart of a node's mean bytes or work, and at least the minimum, gets replicas of its own; at half of it the chunk
	// goes back to its shard. Apart 0: never.
	Apart    float64
	MinBytes uint64
	MinWork  uint64
}

// DefaultPolicy is cautious: moves are copies of data, and what they cost is taken from those that read and write.
func DefaultPolicy() Policy {
	return Policy{PerNode: 2, Total: 64, Slack: 0.15, Apart: 0.25, MinBytes: 4 << 30, MinWork: 2000}
}

// Kind is what a move does.
type Kind string

// The kinds of moves. Only MoveAdd carries data.
const (
	MoveAdd     Kind = "add"     // Node takes the place up; Replaces, if not empty, leaves once it has it
	MoveRemove  Kind = "remove"  // Node gives the place up
	MoveStay    Kind = "stay"    // Node no longer leaves
	MovePrefer  Kind = "prefer"  // Node is asked first, and is the primary
	MoveSplit   Kind = "split"   // the chunk gets replicas of its own
	MoveUnsplit Kind = "unsplit" // the chunk goes back to its shard
)

// Move is one change of a layout that a plan wants now.
type Move struct {
	Kind     Kind
	Place    Place
	Epoch    uint64 // of the place, or of the shard where it is to be split, as the plan saw it
	Node     string // id
	Replaces string // id
	Bytes    uint64 // that are copied
	Why      string
}

func (m Move) String() string {
	s := fmt.Sprintf("%s %s", m.Kind, m.Place)
	if m.Node != "" {
		s += " " + m.Node
	}
	if m.Replaces != "" {
		s += " for " + m.Replaces
	}
	return s + ": " + m.Why
}

// Apply makes the change. An added replica is joining.
func (m Move) Apply(l *Layout) (*Layout, error) {
	switch m.Kind {
	case MoveAdd:
		return l.Add(m.Place, m.Epoch, m.Node, m.Replaces, Joining)
	case MoveRemove:
		return l.Remove(m.Place, m.Epoch, m.Node, false)
	case MoveStay:
		return l.Leave(m.Place, m.Epoch, m.Node, true)
	case MovePrefer:
		return l.Prefer(m.Place, m.Epoch, m.Node)
	case MoveSplit:
		return l.Split(m.Place.Chunk, m.Epoch, false)
	case MoveUnsplit:
		return l.Unsplit(m.Place.Chunk, m.Epoch)
	}
	return nil, fmt.Errorf("move of kind %q: no such kind", m.Kind)
}

// Plan says which changes bring a layout nearer to what it should be: every place with as many replicas as wanted, on active nodes, in as many zones as there
// are, evenly by number, bytes and work. It is called again whenever the layout or the usage changed, and sees in the layout which moves are still in flight.
//
// The same input gives the same moves. A move for balance alone makes the sum of squares of the nodes' loads smaller, so that plans under the same usage come
// to an end; nothing moves while nodes differ by less than the policy's slack, so that usage that varies a little moves nothing. No place is named twice: the
// moves of a plan can be proposed in any order, and one that is refused spoils no other.
func Plan(l *Layout, u Usage, policy Policy) []Move {
	p := newPlanner(l, u, policy)
	if p.active == 0 {
		return nil
	}
	p.tidy()
	waiting := p.repair()
	p.apart()
	p.spreadZones()
	if !waiting { // what is lost comes before what is merely uneven
		p.balance()
	}
	p.orderPreferences()
	return p.moves
}
