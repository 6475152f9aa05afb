package check

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

// panel is a panel of the dashboard, as far as it is held here.
type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ H, W, X, Y int }
	Datasource               source
	Targets                  []struct {
		Datasource source
		Expr       string
	}
	FieldConfig struct {
		Defaults struct{ Unit string }
	}
}

type source struct{ Type, UID string }

func TestDashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../grafana/sluicebox.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels      []panel
		Annotations struct{ List []struct{ Expr string } }
		Templating  struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	known := metrics(t)
	var variables []string
	for _, v := range dashboard.Templating.List {
		variables = append(variables, v.Name)
		if selector, found := strings.CutPrefix(v.Definition, "label_values("); found {
			known.check(t, filled(selector[:strings.LastIndex(selector, ",")]))
		}
	}
	for _, name := range []string{"datasource", "job", "instance", "api"} {
		if !slices.Contains(variables, name) {
			t.Errorf("there is no variable %s", name)
		}
	}
	for _, a := range dashboard.Annotations.List {
		known.check(t, filled(a.Expr))
	}

	ids, taken := map[int]bool{}, map[[2]int]string{}
	for i := range dashboard.Panels {
		p := &dashboard.Panels[i]
		if ids[p.ID] {
			t.Errorf("%s: another panel has its id %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s overlaps %q or the edge at column %d", p.Title, other, x)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" {
			p.check(t, known)
		}
	}
	for name := range known {
		if !strings.Contains(string(text), strings.TrimSuffix(strings.TrimSuffix(name, "_sum"), "_count")) {
			t.Errorf("no panel shows %s", name)
		}
	}
}

func (p *panel) check(t *testing.T, known documented) {
	t.Helper()
	chosen := source{"prometheus", "${datasource}"}
	if p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 || p.Datasource != chosen {
		t.Errorf("panel %d %q lacks a title, a description, a unit, a query or the datasource that the reader chose", p.ID, p.Title)
	}
	for _, target := range p.Targets {
		known.check(t, filled(target.Expr))
		if target.Datasource != chosen {
			t.Errorf("%s: datasource %v", p.Title, target.Datasource)
		}
	}
}

// filled is an expression with values in the place of Grafana's variables.
func filled(expr string) string {
	return strings.NewReplacer("$__rate_interval", "1m", "$job", "j", "$instance", "i", "$api", "a").Replace(expr)
}
