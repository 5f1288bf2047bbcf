package loopback

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// TestServe writes through the mount and reads below it, then ends it by its context.
func TestServe(t *testing.T) {
	root, mnt := t.TempDir(), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- Serve(ctx, root, mnt, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("not mounted: %v", err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "a"), []byte("hello"), 0o600); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "a")); err != nil || string(b) != "hello" {
		t.Errorf("below the mount: %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(mnt, "a")); !os.IsNotExist(err) {
		t.Errorf("still mounted: %v", err)
	}
}

func TestServeRefuses(t *testing.T) {
	err := Serve(t.Context(), filepath.Join(t.TempDir(), "missing"), t.TempDir(), func() { t.Error("ready") })
	if err == nil {
		t.Error("a missing directory was served")
	}
}
