package drill

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"holdfast/blobstore"
	"holdfast/catalog"
	"holdfast/internal/volume"
)

// errAgain: this draw hits nothing that anything uses, or cannot be made here; draw again.
var errAgain = errors.New("draw again")

// allLevels is the level of a damage that concerns files of all levels.
const allLevels = "all"

// kind is a way to damage a store.
type kind struct {
	name   string
	levels []string // whose blobs it is for; nil: allLevels
	modes  []string // storages; nil: all
	// states of the store in which the damage is made.
	clean, crashed, live bool
	several              int // damages in one exercise; 0: one
	// silent: a start, or the check, makes up for it without counting it as damage, because it is what a power cut leaves, or is made anew as a matter of course.
	silent  bool
	control bool // no damage at all: nothing may be reported
	draw    func(d *draw) error
}

// kinds are all of them, in the order of the report.
func kinds() []kind {
	onDB := []string{volume.StorageHybrid, volume.StorageDatabase}
	guarded := []string{catalog.LevelAdvanced, catalog.LevelCritical}
	critical := []string{catalog.LevelCritical}
	list := make([]kind, 0, 32)
	for _, c := range contentDamages() {
		list = append(list, kind{name: "content: " + c.name, levels: levels(), clean: true, live: true, draw: func(d *draw) error { return d.content(c) }})
	}
	list = append(list,
		kind{name: "content: a tenth of its sectors", levels: guarded, clean: true, live: true, draw: (*draw).tenth},
		kind{name: "content: two exchanged", levels: levels(), clean: true, live: true, draw: (*draw).exchanged},
		kind{name: "sidecar", levels: levels(), clean: true, live: true, draw: (*draw).sidecar},
		kind{name: "parity", levels: guarded, clean: true, live: true, silent: true, draw: (*draw).parity},
		kind{name: "second copy", levels: critical, clean: true, live: true, silent: true, draw: (*draw).second},
		kind{name: "blobs.db: edited row", modes: onDB, clean: true, crashed: true, draw: func(d *draw) error { return d.row("blobs.db") }},
		kind{name: "catalog.db: edited row", clean: true, crashed: true, draw: func(d *draw) error { return d.row("catalog.db") }},
		kind{name: "second copy: edited row", clean: true, silent: true, draw: func(d *draw) error { return d.row("second/blobs.db") }})
	for _, db := range []struct {
		name  string
		modes []string
	}{{"blobs.db", onDB}, {"catalog.db", nil}, {"second/blobs.db", nil}} {
		for _, c := range fileDamages() {
			list = append(list, kind{name: db.name + ": " + c.name, modes: db.modes, clean: true, crashed: db.name == "catalog.db", silent: db.name == "second/blobs.db",
				draw: func(d *draw) error { return d.database(db.name, c) }})
		}
	}
	list = append(list, kind{name: "write-ahead log", crashed: true, silent: true, draw: (*draw).wal})
	for _, c := range fileDamages() {
		list = append(list, kind{name: "journal: " + c.name, clean: true, crashed: true, live: true, draw: func(d *draw) error { return d.segment(c) }})
	}
	return append(list,
		kind{name: "journal: edited record", clean: true, crashed: true, live: true, draw: (*draw).record},
		kind{name: "ten at once", clean: true, several: 10, draw: (*draw).any},
		kind{name: "none", clean: true, crashed: true, live: true, control: true})
}

// exercise is a kind of damage in a storage, for a level and in a state of the store.
type exercise struct {
	kind    *kind
	storage string
	level   string // "" or one of levels()
	state   state
}

type state int

const (
	stateClean   state = iota // closed, damaged, opened
	stateCrashed              // left by a killed process, damaged, opened
	stateLive                 // open, read, damaged
)

func (x exercise) String() string {
	s := x.kind.name + ", " + x.storage
	if x.level != "" {
		s += ", " + x.level
	}
	return s + [...]string{"", ", after a crash", ", while open"}[x.state]
}

func (x exercise) damages() int {
	if x.kind.control {
		return 0
	}
	return max(x.kind.several, 1)
}

// exercises are all that there are, in the order in which they are made, which is mixed: a part of them has some of everything.
func exercises() []exercise {
	var list []exercise
	all := kinds()
	for _, storage := range storages() {
		for _, level := range append(levels(), "") {
			for _, st := range []state{stateClean, stateCrashed, stateLive} {
				for i := range all {
					k := &all[i]
					if st == stateClean && !k.clean || st == stateCrashed && !k.crashed || st == stateLive && !k.live ||
						k.modes != nil && !slices.Contains(k.modes, storage) || (level == "") != (k.levels == nil) || level != "" && !slices.Contains(k.levels, level) {
						continue
					}
					if st == stateLive && storage == volume.StorageDatabase && level != "" && k.name != "second copy" {
						continue // all are rows, see draw.own
					}
					list = append(list, exercise{k, storage, level, st})
				}
			}
		}
	}
	random(1, 1).Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// injection is one damage that was made.
type injection struct {
	what    string   // for people
	level   string   // whose it is
	ids     []string // blobs of which each must be reported; none: any report will do
	heals   bool     // it is promised that all is as before in the end
	noState bool     // nothing that a user reads is hit
	silent  bool     // as of its kind
	counts  Counts
}

// draw makes one damage in a scratch store.
type draw struct {
	rnd     *rand.Rand
	dir     string
	storage string
	level   string
	state   state
	m       *model
	open    bool
	hit     map[string]bool // places that were damaged already: a second damage there would be another promise
	in      injection
}

// blob picks a blob of the level.
func (d *draw) blob(ok func(*blob) bool) (*blob, error) {
	var list []*blob
	for _, b := range d.m.blobs {
		if b.level == d.level && (ok == nil || ok(b)) && !d.hit[b.id()] {
			list = append(list, b)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no content of the level %q will do: %w", d.level, errAgain)
	}
	b := list[d.rnd.IntN(len(list))]
	d.in.level = b.level
	return b, nil
}

func large(b *blob) bool { return b.ref.Size > blobstore.MaxSmall }

// isFile says whether a blob is a file in a place of blobs of that storage.
func isFile(storage string, b *blob) bool {
	return storage == volume.StorageFile || storage == volume.StorageHybrid && large(b)
}

// stored is where the bytes of a blob lie.
type stored struct {
	dir  string // of blobs and blobs.db
	file bool
	b    *blob
}

// own is where the store has a blob. Rows are not edited while somebody has the database open: SQLite would be told nothing of it.
func (d *draw) own(b *blob) (stored, error) {
	s := stored{d.dir, isFile(d.storage, b), b}
	if !s.file && d.open {
		return s, fmt.Errorf("%w: its row is in use", errAgain)
	}
	return s, nil
}

func (d *draw) copyOf(b *blob) (stored, error) {
	s := stored{filepath.Join(d.dir, "second"), large(b), b}
	if !s.file && d.open {
		return s, fmt.Errorf("%w: its row is in use", errAgain)
	}
	return s, nil
}

// promise says whether a damage to n of the stored bytes of a blob, or 0 for any number, in sectors pieces, is healed whatever happens.
func promise(b *blob, size int64, touched int64) bool {
	switch {
	case !large(b), b.level == catalog.LevelCritical:
		return true
	case b.level == catalog.LevelAdvanced:
		return touched > 0 && touched*10 <= size
	}
	return false
}

// contentDamage changes stored bytes in place, or returns nil to remove them. touched is how many bytes of sectors that hit, 0: no bound.
type contentDamage struct {
	name string
	fn   func(r *rand.Rand, p []byte) (out []byte, touched int64)
}

const (
	page   = 4096
	sector = 512
)

func flipped(r *rand.Rand, p []byte) ([]byte, int64) {
	i := r.IntN(len(p) * 8)
	p[i/8] ^= 1 << (i % 8)
	return p, sector
}

func zeroed(r *rand.Rand, p []byte) ([]byte, int64) {
	at := r.IntN(len(p)/page+1) * page
	if at == len(p) {
		at = 0
	}
	clear(p[at:min(at+page, len(p))])
	return p, page
}

func truncated(r *rand.Rand, p []byte) ([]byte, int64) {
	n := r.IntN(len(p))
	return p[:n], int64(len(p)-n) + sector
}

func contentDamages() []contentDamage {
	return []contentDamage{
		{"flipped bit", flipped},
		{"zeroed page", zeroed},
		{"truncated", truncated},
		{"deleted", func(*rand.Rand, []byte) ([]byte, int64) { return nil, 0 }},
	}
}

func fileDamages() []contentDamage {
	return []contentDamage{
		{"flipped bit", flipped},
		{"zeroed page", zeroed},
		{"truncated", truncated},
		{"deleted", func(*rand.Rand, []byte) ([]byte, int64) { return nil, 0 }},
	}
}
