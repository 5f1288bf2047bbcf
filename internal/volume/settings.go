package volume

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"holdfast/catalog"
	"holdfast/internal/durable"
)

// Format is the version of the on-disk format that this program writes.
const Format = 1

const (
	settingsFile = "holdfast.toml"
	maxSettings  = 1 << 20
)

var (
	// ErrNoStore: the directory is not a Holdfast store.
	ErrNoStore = errors.New("not a Holdfast store")
	// ErrLocked: another process has the store open. Wrapped in a *LockedError.
	ErrLocked = errors.New("the store is open in another process")
	// ErrFormat: holdfast.toml does not parse, or belongs to a newer program.
	ErrFormat = errors.New("the store's format is not understood")
)

// Storage modes.
const (
	StorageFile     = "file"
	StorageDatabase = "database"
	StorageHybrid   = "hybrid"
)

// Settings is the content of holdfast.toml.
type Settings struct {
	Format  int       `toml:"format" json:"format"`
	StoreID string    `toml:"store_id" json:"store_id"` // 32 hexadecimal digits
	Storage string    `toml:"storage" json:"storage"`
	Created time.Time `toml:"created" json:"created"`
	// Retention says how much history is kept; where it says nothing, catalog.DefaultPolicy holds.
	Retention []Retention `toml:"retention,omitempty" json:"retention,omitempty"`
	// Backups are the places that get backups by themselves.
	Backups []Backup `toml:"backup,omitempty" json:"backup,omitempty"`
	// SecondCopy is the directory of the second copies of critical files; empty: "second" in the store.
	SecondCopy string `toml:"second_copy,omitempty" json:"second_copy,omitempty"`
	// Recovery says of directories how they recover from damage: see RollbackPolicy.
	Recovery []RollbackPolicy `toml:"recovery,omitempty" json:"recovery,omitempty"`
}

func (s Settings) id() (id [16]byte, err error) {
	if len(s.StoreID) != hex.EncodedLen(len(id)) {
		return id, fmt.Errorf("%w: store_id is not 32 hexadecimal digits", ErrFormat)
	}
	if _, err := hex.Decode(id[:], []byte(s.StoreID)); err != nil {
		return id, fmt.Errorf("%w: store_id: %w", ErrFormat, err)
	}
	return id, nil
}

func (s Settings) validate() error {
	if s.Format < 1 || s.Format > Format {
		return fmt.Errorf("%w: it has format %d, this program reads up to %d", ErrFormat, s.Format, Format)
	}
	if _, err := s.id(); err != nil {
		return err
	}
	if err := validateBackups(s.Backups); err != nil {
		return err
	}
	if err := validateRollback(s.Recovery); err != nil {
		return err
	}
	if s.SecondCopy != "" && (!filepath.IsAbs(s.SecondCopy) || strings.ContainsRune(s.SecondCopy, 0) || len(s.SecondCopy) > catalog.MaxPath) {
		return fmt.Errorf("%w: second_copy is not the absolute path of a directory", ErrFormat)
	}
	switch s.Storage {
	case StorageFile, StorageDatabase, StorageHybrid:
		return validateRetention(s.Retention)
	}
	return fmt.Errorf("%w: storage %q is none of file, database, hybrid", ErrFormat, s.Storage)
}

// ReadSettings reads the settings of the store in dir. ErrNoStore when there is none.
func ReadSettings(dir string) (Settings, error) {
	var s Settings
	f, err := os.Open(filepath.Join(dir, settingsFile))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return s, fmt.Errorf("%s: %w (there is no %s; `holdfast init` makes one)", dir, ErrNoStore, settingsFile)
	}
	if err != nil {
		return s, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSettings))
	if err != nil {
		return s, err
	}
	if err := toml.NewDecoder(bytes.NewReader(text)).Decode(&s); err != nil {
		return s, fmt.Errorf("%s: %w: %v", f.Name(), ErrFormat, err)
	}
	if err := s.validate(); err != nil {
		return s, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return s, nil
}

// directory is one that Init makes, with its level.
type directory struct{ name, level string }

func defaultDirectories() []directory {
	return []directory{
		{"messages", "advanced"}, {"tasks", "critical"}, {"status", "basic"}, {"config", "critical"}, {"logs", "advanced"},
	}
}

// InitOptions say what store to make.
type InitOptions struct {
	Storage  string // default hybrid
	UID, GID uint32 // owner of the root and of the five directories
	// SecondCopy is a directory, best on another disk, for the second copies of critical files. It is made, or empty, and its path absolute. Default: "second" in the store.
	SecondCopy string
	Log        *slog.Logger
}

// Init makes a store in dir, which must not exist or be an empty directory. After a crash in the middle dir is not a store
// and must be emptied before the next try. On return the store is on stable storage.
func Init(ctx context.Context, dir string, opt InitOptions) (Settings, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return Settings{}, err
	}
	if opt.Storage == "" {
		opt.Storage = StorageHybrid
	}
	s := Settings{Format: Format, StoreID: hex.EncodeToString(id), Storage: opt.Storage, Created: time.Now().UTC().Truncate(time.Second),
		Backups: []Backup{defaultBackup()}, SecondCopy: opt.SecondCopy}
	if err := s.validate(); err != nil {
		return Settings{}, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(dir, settingsFile)); err == nil {
			return Settings{}, fmt.Errorf("%s: %w: it is a store already", dir, catalog.ErrExist)
		}
		return Settings{}, fmt.Errorf("%s: %w: choose a new directory for the store", dir, catalog.ErrNotEmpty)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Settings{}, err
	}
	for _, sub := range []string{"", "journal", "blobs", stagingDir, "quarantine"} {
		if err := durable.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return Settings{}, err
		}
	}
	if s.SecondCopy != "" {
		if err := makeSecond(s.SecondCopy, s.StoreID); err != nil {
			return Settings{}, err
		}
	}
	// The tree comes first and holdfast.toml last: until it is there, the directory is not a store.
	if err := initTree(ctx, dir, s, opt); err != nil {
		return Settings{}, err
	}
	text, err := toml.Marshal(s)
	if err != nil {
		return Settings{}, err
	}
	return s, durable.WriteFile(filepath.Join(dir, settingsFile), text, 0o600)
}

func initTree(ctx context.Context, dir string, s Settings, opt InitOptions) (err error) {
	v, err := open(ctx, Options{Dir: dir, Log: opt.Log}, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close(ctx)) }()
	who := catalog.Actor{Agent: "holdfast", Program: "holdfast", UID: opt.UID, PID: uint32(os.Getpid())}
	attr := catalog.NewInode{Mode: unix.S_IFDIR | 0o755, UID: opt.UID, GID: opt.GID}
	if err := v.cat.Init(ctx, who, attr); err != nil {
		return err
	}
	for _, d := range defaultDirectories() {
		ino, err := v.cat.Create(ctx, who, catalog.Root, d.name, attr)
		if err != nil {
			return err
		}
		if err := v.cat.SetXattr(ctx, who, ino.Ino, catalog.LevelXattr, []byte(d.level), 0); err != nil {
			return err
		}
	}
	return v.cat.Sync(ctx)
}
