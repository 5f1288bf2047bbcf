package integrity_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/blobstore"
	"holdfast/integrity"
	"holdfast/internal/volume"
)

const healerEnv = "HOLDFAST_TEST_HEALER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(healerEnv); dir != "" {
		if err := healAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// healAll is the process that is killed: it heals whatever it finds.
func healAll(dir string) error {
	ctx := context.Background()
	vol, err := volume.Open(ctx, volume.Options{Dir: dir})
	if err != nil {
		return err
	}
	eng, err := integrity.New(ctx, integrity.Options{Volume: vol, Restore: restorer(vol)})
	if err != nil {
		return err
	}
	fmt.Println("begin")
	_, err = eng.CheckStore(ctx, integrity.CheckOptions{Repair: true}, func(integrity.Result) error { return nil })
	return errors.Join(err, eng.Close(), vol.Close(ctx))
}

// TestKilledWhileHealing kills the process that heals, at random moments, until everything is healed: no copy is ever lost, and nothing is read wrong.
func TestKilledWhileHealing(t *testing.T) {
	for _, storage := range storages() {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Log("seed", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			w := newWorld(t, storage)
			var refs []blobstore.Ref
			bodies := make(map[string][]byte)
			for i, size := range []int{300, 20 << 10, 100 << 10, 300 << 10, 900 << 10} {
				p := "/tasks/" + string(rune('a'+i))
				bodies[p] = noise(uint64(i), size)
				refs = append(refs, w.put(p, bodies[p]))
			}
			w.uphold()
			w.close()
			list := damages()
			for round := range 6 {
				for i, ref := range refs {
					dir, asFile := w.dir, w.isFile(ref)
					if i%2 == 1 {
						dir, asFile = filepath.Join(w.dir, "second"), ref.Size > blobstore.MaxSmall
					}
					if intactIn(t, w, dir, ref) { // else a kill left it damaged
						w.alter(dir, asFile, ref, list[(i+round)%len(list)].fn)
					}
				}
				killHealer(t, w.dir, time.Duration(r.IntN(60))*time.Millisecond)
			}
			w.open()
			if _, err := w.eng.CheckStore(t.Context(), integrity.CheckOptions{Repair: true}, func(r integrity.Result) error {
				if !r.Healthy() {
					t.Errorf("%+v", r)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			for p, body := range bodies {
				w.want(p, body)
			}
			for _, ref := range refs {
				if err := errors.Join(w.vol.Blobs().Verify(t.Context(), ref), w.vol.Second().Verify(t.Context(), ref)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// intactIn says whether a blob is whole in the store, or in the place of the copies, at dir.
func intactIn(t *testing.T, w *world, dir string, ref blobstore.Ref) bool {
	t.Helper()
	mode := w.storage
	if strings.HasSuffix(dir, "second") {
		mode = blobstore.ModeHybrid
	}
	s, err := blobstore.Open(t.Context(), blobstore.Options{Dir: dir, Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	whole := s.Verify(t.Context(), ref)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return whole == nil
}

// killHealer runs the healer and kills it after a while, counted from its beginning to heal.
func killHealer(t *testing.T, dir string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), healerEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if line != "begin\n" {
		t.Errorf("the healer said %q: %s", line, said.String())
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && said.Len() > 0 {
		t.Errorf("%v: %s", err, said.String())
	}
}
