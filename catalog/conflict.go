package catalog

import (
	"fmt"
)

// Conflict is one row: two writers changed the same version of a file, and the later close buried the earlier one's change. Both survive.
type Conflict struct {
	_    struct{} `cbor:",toarray"`
	Ino  Ino
	Path string // of the file then
	Lost uint64 // number of the version that was buried
	Won  uint64 // number of the version that is the newer one
	// Side is set in a strict directory: the later close failed, and what it wanted to save is the content of this inode, which has no name.
	// Lost is then a version of Side, and Won the version of Ino that stays.
	Side   Ino
	Time   Timestamp
	LostBy Actor
	WonBy  Actor
	Seq    Seq `cbor:"-"` // the record that holds it; filled when read
}

func (x *Conflict) flaw() string {
	switch {
	case !x.Ino.known() || x.Side >= maxIno || x.Lost > maxIno || x.Won > maxIno:
		return "a number is out of range"
	case len(x.Path) > MaxPath:
		return fmt.Sprintf("its path has %d bytes", len(x.Path))
	}
	for _, a := range []*Actor{&x.LostBy, &x.WonBy} {
		if len(a.Agent) > MaxActor || len(a.Program) > MaxActor {
			return fmt.Sprintf("the name of an agent or a program has more than %d bytes", MaxActor)
		}
	}
	return ""
}
