package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// row is one line of the table: a quantity of one contender, over all runs.
type row struct {
	Figure    string    `json:"figure"`
	Contender string    `json:"contender"`
	Unit      string    `json:"unit"`
	Runs      []float64 `json:"runs"`
	Median    float64   `json:"median"`
	Ratio     float64   `json:"ratio,omitempty"` // to the median of Of
	Of        string    `json:"of,omitempty"`
	Aim       string    `json:"aim,omitempty"`
}

// table gathers what was measured.
type table struct {
	Machine  string `json:"machine"`
	Versions string `json:"versions"`
	Commit   string `json:"commit"`
	Rows     []*row `json:"rows"`
}

// add notes one run of a contender.
func (t *table) add(figure, contender, unit string, value float64) *row {
	r := t.find(figure, contender, unit)
	if r == nil {
		r = &row{Figure: figure, Contender: contender, Unit: unit}
		t.Rows = append(t.Rows, r)
	}
	r.Runs = append(r.Runs, value)
	r.Median = median(r.Runs)
	return r
}

// aim notes what the figure should be.
func (r *row) aim(aim string) { r.Aim = aim }

// against sets the ratio of a contender's median to another one's, and what it should be.
func (t *table) against(figure, contender, unit, of, aim string) {
	a, b := t.find(figure, contender, unit), t.find(figure, of, unit)
	if a != nil && b != nil && b.Median > 0 {
		a.Ratio, a.Of, a.Aim = a.Median/b.Median, of, aim
	}
}

// shares notes the processor time of each part, in seconds, times a factor.
func (t *table) shares(figure, unit string, factor float64, parts map[string]time.Duration) {
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		t.add(figure, part, unit, parts[part].Seconds()*factor)
	}
}

func (t *table) find(figure, contender, unit string) *row {
	i := slices.IndexFunc(t.Rows, func(r *row) bool { return r.Figure == figure && r.Contender == contender && r.Unit == unit })
	if i < 0 {
		return nil
	}
	return t.Rows[i]
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

func (t *table) write(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "%s\n%s\ncommit %s\n\n", t.Machine, t.Versions, t.Commit)
	_, _ = fmt.Fprintln(w, "figure\tcontender\tmedian\tunit\tspread\truns\tratio\taim")
	for _, r := range t.Rows {
		ratio := ""
		if r.Of != "" {
			ratio = fmt.Sprintf("%.2f of %s", r.Ratio, r.Of)
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", r.Figure, r.Contender, number(r.Median), r.Unit,
			number(slices.Min(r.Runs))+" to "+number(slices.Max(r.Runs)), len(r.Runs), ratio, r.Aim)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

// number prints three significant digits, with thousands apart.
func number(v float64) string {
	switch {
	case v >= 1000:
		digits := fmt.Sprintf("%.0f", v)
		var parts []string
		for len(digits) > 3 {
			parts = append([]string{digits[len(digits)-3:]}, parts...)
			digits = digits[:len(digits)-3]
		}
		return strings.Join(append([]string{digits}, parts...), ",")
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (t *table) save(path string) error {
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return fmt.Errorf("save the table: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("save the table: %w", err)
	}
	return nil
}

// quantile is the value below which a share of them lies.
func quantile(values []float64, share float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}
