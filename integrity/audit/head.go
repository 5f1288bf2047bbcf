package audit

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	originPrefix = "holdfast/"
	// maxNote bounds a signed tree head, in bytes: there is room for the signatures of many witnesses.
	maxNote = 16 << 10
	// maxRecords keeps arithmetic on numbers from outside away from overflow.
	maxRecords = 1 << 62
)

// TreeHead is what a signed tree head (a checkpoint in the format of sumdb/note) says: the journal's first Size records are the leaves of the tree with this root.
type TreeHead struct {
	Origin string // "holdfast/" and the store's id; the name of its keys too
	Size   int64
	Root   tlog.Hash
	Time   time.Time // when it was signed, by the signer's clock
}

// Origin is the name of a store's keys and the first line of its tree heads.
func Origin(store [16]byte) string { return originPrefix + hex.EncodeToString(store[:]) }

// StoreOf is the inverse of Origin; ErrMalformed.
func StoreOf(origin string) (store [16]byte, err error) {
	id, ok := strings.CutPrefix(origin, originPrefix)
	if b, err := hex.DecodeString(id); ok && err == nil && len(b) == len(store) && hex.EncodeToString(b) == id {
		return [16]byte(b), nil
	}
	return store, fmt.Errorf("%w: %.80q is not the name of a store's key", ErrMalformed, origin)
}

// text is what is signed.
func (h TreeHead) text() string {
	return fmt.Sprintf("%s\n%d\n%s\ntime %s\n", h.Origin, h.Size, h.Root, h.Time.UTC().Format(time.RFC3339Nano))
}

// parseTreeHead is the inverse of text: what it returns gives the same text again.
func parseTreeHead(text string) (h TreeHead, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 5 || lines[4] != "" {
		return h, fmt.Errorf("%w: a tree head has four lines", ErrMalformed)
	}
	h.Origin = lines[0]
	if _, err := StoreOf(h.Origin); err != nil {
		return h, err
	}
	if h.Size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || h.Size < 1 || h.Size > maxRecords {
		return h, fmt.Errorf("%w: %.40q is not a number of records", ErrMalformed, lines[1])
	}
	if h.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return h, fmt.Errorf("%w: the root of a tree head is not a hash", ErrMalformed)
	}
	at, ok := strings.CutPrefix(lines[3], "time ")
	if h.Time, err = time.Parse(time.RFC3339Nano, at); !ok || err != nil {
		return h, fmt.Errorf("%w: the time of a tree head is not in RFC 3339", ErrMalformed)
	}
	if h.text() != text {
		return h, fmt.Errorf("%w: a tree head is not in its canonical form", ErrMalformed)
	}
	return h, nil
}

// ParseKeys reads public keys, one on a line, as in the file key.pub: the one in use first, then those that it has replaced.
func ParseKeys(text string) ([]note.Verifier, error) {
	var keys []note.Verifier
	if len(text) > maxNote {
		return nil, fmt.Errorf("%w: more than %d bytes of public keys", ErrMalformed, maxNote)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		k, err := note.NewVerifier(line)
		if err != nil {
			return nil, fmt.Errorf("%w: %.80q is not a public key", ErrMalformed, line)
		}
		if _, err := StoreOf(k.Name()); err != nil {
			return nil, err
		}
		if len(keys) > 0 && keys[0].Name() != k.Name() {
			return nil, fmt.Errorf("%w: the public keys are of two stores, %s and %s", ErrMalformed, keys[0].Name(), k.Name())
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: there is no public key", ErrMalformed)
	}
	return keys, nil
}

// OpenHead checks the signature of a tree head and reads it; key is the place of its key in keys. ErrMalformed when it is not a signed tree head, ErrTampered
// when none of keys signed it, or it is not of their store.
func OpenHead(msg []byte, keys []note.Verifier) (h TreeHead, key int, err error) {
	if len(msg) > maxNote {
		return h, 0, fmt.Errorf("%w: a signed tree head has at most %d bytes", ErrMalformed, maxNote)
	}
	n, err := note.Open(msg, note.VerifierList(keys...))
	var bad *note.InvalidSignatureError
	var unknown *note.UnverifiedNoteError
	switch {
	case errors.As(err, &bad):
		return h, 0, fmt.Errorf("%w: the signature of a tree head is not right", ErrTampered)
	case errors.As(err, &unknown):
		return h, 0, fmt.Errorf("%w: a tree head is signed with another key", ErrTampered)
	case err != nil:
		return h, 0, fmt.Errorf("%w: it is not a signed tree head (%w)", ErrMalformed, err)
	}
	if h, err = parseTreeHead(n.Text); err != nil {
		return h, 0, err
	}
	for i, k := range keys {
		if k.Name() == n.Sigs[0].Name && k.KeyHash() == n.Sigs[0].Hash {
			key = i
		}
	}
	if h.Origin != keys[key].Name() {
		return h, 0, fmt.Errorf("%w: a tree head of %s is signed by %s", ErrTampered, h.Origin, keys[key].Name())
	}
	return h, key, nil
}

// signHead returns the signed form of a tree head.
func signHead(h TreeHead, s note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: h.text()}, s)
}
