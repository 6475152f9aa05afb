package check

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/sluicebox/sluicebox/internal/testdoc"
)

// documented is what docs/metrics.md lists: each series with its labels.
type documented map[string][]string

func metrics(t *testing.T) documented {
	t.Helper()
	d := documented{"ALERTS": {"alertname", "alertstate"}}
	for _, section := range []string{"The daemon", "The API"} {
		for _, m := range testdoc.Listed(t, section) {
			if m.Type != "histogram" {
				d[m.Name] = m.Labels
				continue
			}
			d[m.Name+"_sum"], d[m.Name+"_count"] = m.Labels, m.Labels
			d[m.Name+"_bucket"] = append([]string{"le"}, m.Labels...)
		}
	}
	return d
}

// check fails unless an expression parses, and asks for nothing but documented metrics with labels that they have.
func (d documented) check(t *testing.T, expr string) {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", expr, err)
		return
	}
	has := []string{"job", "instance"} // those that Prometheus adds, and those of every metric of the expression
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		own, known := d[selector.Name]
		if !known && !strings.HasPrefix(selector.Name, "go_") && !strings.HasPrefix(selector.Name, "process_") {
			t.Errorf("%s: docs/metrics.md has no %s", expr, selector.Name)
		}
		has = append(has, own...)
		for _, m := range selector.LabelMatchers {
			if !slices.Contains([]string{model.MetricNameLabel, "job", "instance"}, m.Name) && !slices.Contains(own, m.Name) {
				t.Errorf("%s: %s has no label %s", expr, selector.Name, m.Name)
			}
		}
		return nil
	})
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		if aggregate, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range aggregate.Grouping {
				if !slices.Contains(has, label) {
					t.Errorf("%s: nothing in it has a label %s", expr, label)
				}
			}
		}
		return nil
	})
}
