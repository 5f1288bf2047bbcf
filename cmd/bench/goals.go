package main

import "fmt"

// Reference for a goal that is not a target: the speed of SHA-256 on one core.
const refSHA256 = "sha256"

// goal says how a row of Holdfast should compare with the same row of a reference.
type goal struct {
	row    string
	ref    string
	factor float64 // at least so many times the reference
}

func goals() []goal {
	var g []goal
	for _, row := range []string{rowCreate1, rowReplace, rowOverwrite, rowUnlink} {
		g = append(g, goal{row, nameFloor, 0.75}, goal{row, nameLoopback, 1})
	}
	return append(g,
		goal{rowStat, nameFloor, 0.9},
		goal{rowListWarm, nameFloor, 0.9},
		goal{rowRead, nameFloor, 0.9},
		goal{rowAppendOpen, nameExt4, 0.5},
		goal{rowWrite4K, nameExt4, 0.5},
		goal{rowLargeWrite, nameLoopback, 0.8},
		goal{rowLargeFirst, refSHA256, 0.6},
		goal{rowLargeAgain, nameExt4, 0.4},
	)
}

// goalTable marks each goal "pass" or "short"; a goal that was not measured is left out.
func goalTable(r *Result) *table {
	t := &table{left: 2, head: []string{"goal", "result", "is", "should be"}}
	for _, g := range goals() {
		row, ok := r.Row(g.row)
		if !ok {
			continue
		}
		v, ok := row.ratio(nameHoldfast, g.ref)
		if g.ref == refSHA256 {
			var x float64
			x, ok = row.Median(nameHoldfast)
			ok = ok && r.SHA256 > 0
			v = x / r.SHA256
		}
		if !ok {
			continue
		}
		mark := "short"
		if v >= g.factor {
			mark = "pass"
		}
		t.add(g.row+" against "+g.ref, mark, ratioText(v, true), fmt.Sprintf(">= %.2f", g.factor))
	}
	return t
}
