package main

import (
	"fmt"
	"io"
	"strings"
)

// Names of the targets, in the order of the columns.
const (
	nameExt4     = "ext4"
	nameLoopback = "loopback"
	nameFloor    = "floor"
	nameHoldfast = "holdfast"
)

func targetNames() []string { return []string{nameExt4, nameLoopback, nameFloor, nameHoldfast} }

// table is text in columns, of which the first left ones are set to the left and the others to the right.
type table struct {
	head []string
	rows [][]string
	left int
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// text writes the table with its columns lined up.
func (t *table) text(w io.Writer) error {
	width := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, c := range row {
			width[i] = max(width[i], len(c))
		}
	}
	for _, row := range append([][]string{t.head}, t.rows...) {
		var b strings.Builder
		for i, c := range row {
			if i > 0 {
				b.WriteString("  ")
			}
			if i < t.left {
				fmt.Fprintf(&b, "%-*s", width[i], c)
			} else {
				fmt.Fprintf(&b, "%*s", width[i], c)
			}
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// markdown writes the table as Markdown has it.
func (t *table) markdown(w io.Writer) error {
	line := func(cells []string) error {
		_, err := fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
		return err
	}
	if err := line(t.head); err != nil {
		return err
	}
	marks := make([]string, len(t.head))
	for i := range marks {
		marks[i] = "--:"
		if i < t.left {
			marks[i] = "---"
		}
	}
	if err := line(marks); err != nil {
		return err
	}
	for _, row := range t.rows {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = strings.ReplaceAll(c, "|", `\|`)
		}
		if err := line(cells); err != nil {
			return err
		}
	}
	return nil
}

const none = "-"

// number is a value as people read it: three digits or more, none behind the point from 100 on.
func number(v float64, ok bool) string {
	switch {
	case !ok:
		return none
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

func ratioText(v float64, ok bool) string {
	if !ok {
		return none
	}
	return fmt.Sprintf("%.2f", v)
}

// rateTable is the first table: the medians, and what they are of each other.
func rateTable(r *Result) *table {
	t := &table{left: 2, head: []string{"row", "what"}}
	t.head = append(t.head, targetNames()...)
	t.head = append(t.head, "unit", "/floor", "/ext4", "/loopback", "spread")
	for _, row := range r.Rows {
		cells := []string{row.Name, row.What}
		for _, name := range targetNames() {
			v, ok := row.Median(name)
			cells = append(cells, number(v, ok))
		}
		cells = append(cells, row.Unit)
		for _, name := range []string{nameFloor, nameExt4, nameLoopback} {
			v, ok := row.ratio(nameHoldfast, name)
			cells = append(cells, ratioText(v, ok))
		}
		t.add(append(cells, percent(spread(row.Values[nameHoldfast])))...)
	}
	return t
}

// compareTable sets two runs side by side, target by target: "change" above 1 is faster in b.
func compareTable(a, b *Result) *table {
	t := &table{left: 3, head: []string{"row", "target", "unit", "before", "after", "change", "spread before", "spread after"}}
	for _, after := range b.Rows {
		before, ok := a.Row(after.Name)
		if !ok || before.Unit != after.Unit {
			continue
		}
		for _, name := range targetNames() {
			x, ok1 := before.Median(name)
			y, ok2 := after.Median(name)
			if !ok1 || !ok2 {
				continue
			}
			change := none
			if x != 0 {
				change = fmt.Sprintf("%.2f", y/x)
			}
			t.add(after.Name, name, after.Unit, number(x, true), number(y, true), change, percent(spread(before.Values[name])), percent(spread(after.Values[name])))
		}
	}
	return t
}

func percent(v float64, ok bool) string {
	if !ok {
		return none
	}
	return fmt.Sprintf("%.0f%%", 100*v)
}
