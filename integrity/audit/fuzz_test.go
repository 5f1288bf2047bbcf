package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func golden(f *testing.F, name string) []byte {
	f.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// seeds adds a golden text, and what can be made of it by leaving something out or changing it.
func seeds(f *testing.F, name string) {
	f.Helper()
	b := golden(f, name)
	f.Add(b)
	for i := 0; i < len(b); i += 1 + len(b)/40 {
		f.Add(b[:i])
		c := bytes.Clone(b)
		c[i] ^= 0x11
		f.Add(c)
		f.Add(append(bytes.Clone(b[:i]), b[i+1:]...))
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte("hash AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"), 200))
}

// FuzzProof: what parses has this text only, and only the golden proof holds.
func FuzzProof(f *testing.F) {
	seeds(f, "proof")
	keys, err := ParseKeys(string(golden(f, "key.pub")))
	if err != nil {
		f.Fatal(err)
	}
	good, err := ParseProof(golden(f, "proof"))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseProof(text)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Text(), text) {
			t.Fatalf("%q is another text than %q", p.Text(), text)
		}
		if _, err := p.Check(keys); err == nil && (p.Seq != good.Seq || !bytes.Equal(p.Head, good.Head) || p.Prev != good.Prev || p.Frame != good.Frame) {
			t.Fatalf("another proof holds:\n%s", text)
		}
	})
}

// FuzzExtension is FuzzProof for extensions.
func FuzzExtension(f *testing.F) {
	seeds(f, "extension")
	keys, err := ParseKeys(string(golden(f, "key.pub")))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := ParseExtension(text)
		if err != nil {
			return
		}
		if !bytes.Equal(x.Text(), text) {
			t.Fatalf("%q is another text than %q", x.Text(), text)
		}
		if before, after, err := x.Check(keys); err == nil && before.Size > after.Size {
			t.Fatalf("%d records extend %d", after.Size, before.Size)
		}
	})
}

// FuzzCheckpoints: a file of tree heads loses nothing when it is taken apart, and only what was signed is a head.
func FuzzCheckpoints(f *testing.F) {
	seeds(f, "checkpoint")
	seeds(f, "extension")
	keys, err := ParseKeys(string(golden(f, "key.pub")))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var all []byte
		for _, p := range splitHeads(b, keys[0].Name()) {
			if int64(len(all)) != p.off || len(p.data) == 0 {
				t.Fatalf("a piece of %d bytes at %d, the pieces before it have %d", len(p.data), p.off, len(all))
			}
			all = append(all, p.data...)
			if h, _, err := OpenHead(p.data, keys); err == nil && h.text() != string(p.data[:len(h.text())]) {
				t.Fatalf("%q is signed as %q", p.data, h.text())
			}
		}
		if !bytes.Equal(all, b) {
			t.Fatal("bytes were lost")
		}
	})
}

// FuzzKeys: a public key that is taken is one of a store.
func FuzzKeys(f *testing.F) {
	seeds(f, "key.pub")
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := ParseKeys(string(b))
		if err != nil {
			return
		}
		for _, k := range keys {
			if id, err := StoreOf(k.Name()); err != nil || Origin(id) != keys[0].Name() {
				t.Fatalf("%q: %v", k.Name(), err)
			}
		}
	})
}
