package integrity

import (
	"context"
	"fmt"
	"strings"
)

// Status says how the store is.
func (e *Engine) Status(ctx context.Context) (Status, error) {
	out := Status{Time: e.now().UTC(), Second: e.vol.Second().Dir()}
	var err error
	if out.Scrub, err = e.scrub.Status(ctx); err != nil {
		return out, err
	}
	for _, q := range []struct {
		to    *int64
		query string
	}{
		{&out.Damaged, "SELECT count(*) FROM damaged"},
		{&out.Others, "SELECT count(*) FROM damaged WHERE length(data_id) != 64"},
		{&out.Failures, "SELECT count(*) FROM failures"},
		{&out.Recovered, "SELECT count(*) FROM failures WHERE successful = 1"},
	} {
		if *q.to, err = e.state.count(ctx, q.query); err != nil {
			return out, err
		}
	}
	if _, out.Quarantined, err = e.quarantined(); err != nil {
		return out, err
	}
	st, err := e.cat.Stats(ctx)
	if err != nil {
		return out, err
	}
	e.mu.Lock()
	out.Missing = int64(len(e.queue))
	degraded := e.degraded
	e.mu.Unlock()
	if degraded == nil {
		degraded = e.vol.Second().Err()
	}
	if degraded != nil {
		out.Degraded, out.DegradedWhy = true, degraded.Error()
	}
	var wrong []string
	if st.LastError != nil {
		wrong = append(wrong, st.LastError.Error())
	}
	for _, d := range st.Damage {
		wrong = append(wrong, d.Error())
	}
	out.CatalogError = strings.Join(wrong, "; ")
	out.Healthy = out.Damaged == 0 && !out.Degraded && len(wrong) == 0
	out.Summary = out.line()
	return out, nil
}

// plural is a number and what it counts.
func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// line is the status in one line.
func (s *Status) line() string {
	if s.Healthy {
		text := "healthy: nothing is damaged"
		if s.Recovered > 0 {
			text += "; " + plural(s.Recovered, "damage was", "damages were") + " healed"
		}
		return text
	}
	var parts []string
	if s.Damaged > 0 {
		parts = append(parts, s.listed())
	}
	if s.Degraded {
		parts = append(parts, "degraded: second copies cannot be written ("+s.DegradedWhy+")")
	}
	if s.CatalogError != "" {
		parts = append(parts, s.CatalogError)
	}
	return "not healthy: " + strings.Join(parts, "; ")
}
