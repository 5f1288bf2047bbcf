package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"holdfast/internal/durable"
)

// keyring is a store's keys: what signs, and the public keys, the one in use first.
type keyring struct {
	signer note.Signer // nil when read-only
	public []note.Verifier
	text   string // the public key in use
	// lost says that the key was gone, and another one has taken its place.
	lost bool
}

// readBounded reads a small file. fs.ErrNotExist when there is none.
func readBounded(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrMalformed, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(b)) > max {
		err = fmt.Errorf("%w: %s has more than %d bytes", ErrMalformed, path, max)
	}
	return b, err
}

// ReadKeys reads the public keys of a store from its audit directory. fs.ErrNotExist when nothing was signed yet.
func ReadKeys(dir string) ([]note.Verifier, error) {
	text, err := readBounded(filepath.Join(dir, pubName), maxNote)
	if err != nil {
		return nil, err
	}
	keys, err := ParseKeys(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, pubName), err)
	}
	return keys, nil
}

// openKeys reads the keys of a store and makes them when there are none. A key that is damaged is an error: nobody replaces it silently.
func openKeys(dir string, store [16]byte, readOnly bool, log *slog.Logger) (k keyring, err error) {
	name := Origin(store)
	pubPath, keyPath := filepath.Join(dir, pubName), filepath.Join(dir, keyName)
	old, err := readBounded(pubPath, maxNote)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if readOnly {
		if err != nil {
			return k, nil
		}
		k.text, _, _ = strings.Cut(strings.TrimSpace(string(old)), "\n")
		k.public, err = ParseKeys(string(old))
		return k, err
	}
	secret, err := readBounded(keyPath, maxNote)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		made, _, err := note.GenerateKey(rand.Reader, name)
		if err != nil {
			return k, err
		}
		secret = []byte(made + "\n")
		if err := durable.WriteFile(keyPath, secret, 0o600); err != nil {
			return k, fmt.Errorf("make the key of the audit log: %w", err)
		}
		if k.lost = len(bytes.TrimSpace(old)) > 0; k.lost {
			log.Warn("the key of the audit log was lost; a new one signs from now on", "key", keyPath)
		}
	case err != nil:
		return k, err
	}
	if k.signer, k.text, err = parseSecret(strings.TrimSpace(string(secret))); err != nil || k.signer.Name() != name {
		return k, fmt.Errorf("%w: %s is not the key of this store; put the right one back, or move it away and a new one is made", ErrMalformed, keyPath)
	}
	pub := k.text + "\n"
	for line := range strings.Lines(string(old)) {
		if line = strings.TrimSpace(line); line != "" && line != k.text {
			if _, err := ParseKeys(line); err != nil {
				log.Error("a public key of the audit log is damaged and left out", "file", pubPath)
				continue
			}
			pub += line + "\n"
		}
	}
	if pub != string(old) {
		if err := durable.WriteFile(pubPath, []byte(pub), 0o600); err != nil {
			return k, fmt.Errorf("write the public key of the audit log: %w", err)
		}
	}
	k.public, err = ParseKeys(pub)
	return k, err
}

// parseSecret returns what signs with a private key, and its public key.
func parseSecret(secret string) (note.Signer, string, error) {
	s, err := note.NewSigner(secret)
	if err != nil {
		return nil, "", err
	}
	// "PRIVATE+KEY+<name>+<hash>+<algorithm and seed in base64>"; NewSigner has checked it.
	seed, err := base64.StdEncoding.DecodeString(secret[strings.LastIndexByte(secret[:len("PRIVATE+KEY+")+len(s.Name())+1+8+1], '+')+1:])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, "", fmt.Errorf("%w: it is not an Ed25519 key", ErrMalformed)
	}
	public, ok := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	if !ok {
		return nil, "", ErrMalformed
	}
	v, err := note.NewEd25519VerifierKey(s.Name(), public)
	return s, v, err
}
