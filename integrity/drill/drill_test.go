package drill_test

import (
	"os"
	"strconv"
	"testing"

	"holdfast/blobstore/blobstoretest"
	"holdfast/integrity/drill"
)

func number(t *testing.T, name string, or uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return or
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestDrill damages stores in a mixture of all ways that there are. HOLDFAST_DRILL_DAMAGES makes it longer.
func TestDrill(t *testing.T) {
	seed := number(t, "HOLDFAST_TEST_SEED", 1)
	rep, err := drill.Run(t.Context(), drill.Options{Dir: blobstoretest.TempDir(t), Seed: seed, Damages: int(number(t, "HOLDFAST_DRILL_DAMAGES", damages)), Only: int(number(t, "HOLDFAST_DRILL_ONLY", 0))})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range rep.Problems {
		t.Errorf("exercise %d: %s: %s\n\t%s", p.Number, p.What, p.Damage, p.Detail)
	}
	if err := rep.Err(); err != nil {
		t.Error(err)
	}
	t.Logf("seed %d: %+v in %v, check %v, heal %v", rep.Seed, rep.Total, rep.Took, rep.CheckMedian, rep.HealMedian)
}
