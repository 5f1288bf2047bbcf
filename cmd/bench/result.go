package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"
)

// resultFormat is the version of the JSON that this program writes and reads.
const resultFormat = 1

// errResult: a file is not a result of this program.
var errResult = errors.New("not a result of the benchmarks")

// Result is everything that one run measured.
type Result struct {
	Format   int         `json:"format"`
	Time     time.Time   `json:"time"`
	Commit   string      `json:"commit"`
	Modified bool        `json:"modified"` // the source differed from the commit
	Quick    bool        `json:"quick"`
	Rounds   int         `json:"rounds"`
	Machine  Machine     `json:"machine"`
	SHA256   float64     `json:"sha256_mib_s"` // one core
	Rows     []RowResult `json:"rows"`
	Trips    []Trip      `json:"trips"`
	Notes    []string    `json:"notes"`
}

// RowResult is one row: for each target the value of each round, in the order of the rounds. More is better.
type RowResult struct {
	Name   string               `json:"name"`
	What   string               `json:"what"`
	Unit   string               `json:"unit"`
	Values map[string][]float64 `json:"values"`
}

// Median is the median of a target's rounds; false when it has none.
func (r RowResult) Median(target string) (float64, bool) { return median(r.Values[target]) }

// median is false for no values; of an even number it is the mean of the two in the middle.
func median(values []float64) (float64, bool) {
	if len(values) == 0 {
		return 0, false
	}
	v := slices.Clone(values)
	slices.Sort(v)
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m], true
	}
	return v[m-1]/2 + v[m]/2, true
}

// spread is the distance between the best and the worst round, as a part of the median; false without at least two rounds.
func spread(values []float64) (float64, bool) {
	m, ok := median(values)
	if !ok || len(values) < 2 || m == 0 {
		return 0, false
	}
	return (slices.Max(values) - slices.Min(values)) / m, true
}

// ratio is a/b; false when either is missing or b is 0.
func (r RowResult) ratio(a, b string) (float64, bool) {
	x, ok1 := r.Median(a)
	y, ok2 := r.Median(b)
	if !ok1 || !ok2 || y == 0 {
		return 0, false
	}
	return x / y, true
}

// Row finds a row by its name.
func (r *Result) Row(name string) (RowResult, bool) {
	i := slices.IndexFunc(r.Rows, func(x RowResult) bool { return x.Name == name })
	if i < 0 {
		return RowResult{}, false
	}
	return r.Rows[i], true
}

// writeResult writes r as JSON to path.
func writeResult(path string, r *Result) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// readResult reads what writeResult wrote; errResult when it is something else.
func readResult(path string) (*Result, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read a result: %w", err)
	}
	defer f.Close()
	r, err := parseResult(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; make one with scripts/bench --json FILE", path, err)
	}
	return r, nil
}

// parseResult reads one result of at most 16 MiB.
func parseResult(in io.Reader) (*Result, error) {
	const most = 16 << 20
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return nil, err
	}
	if len(b) > most {
		return nil, fmt.Errorf("%w: more than %d bytes", errResult, most)
	}
	var r Result
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", errResult, err)
	}
	if r.Format != resultFormat {
		return nil, fmt.Errorf("%w: format %d, this program reads %d", errResult, r.Format, resultFormat)
	}
	for _, row := range r.Rows {
		for target, values := range row.Values {
			for _, v := range values {
				if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
					return nil, fmt.Errorf("%w: row %q, %s: %v", errResult, row.Name, target, v)
				}
			}
		}
	}
	for _, t := range r.Trips {
		for _, c := range t.Counts {
			if c.Ops <= 0 {
				return nil, fmt.Errorf("%w: requests of %q counted over %d operations", errResult, t.Name, c.Ops)
			}
		}
	}
	return &r, nil
}
