package ops

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/cli"
)

const (
	// mostColumns is how many columns a chart has at most: a screen has no room for all points of an hour, and who looks at the page fetches
	// it every two seconds.
	mostColumns = 240
	chartHeight = 100
)

// span is the time that charts show, in columns: each the worst or the mean of its points.
type span struct {
	to      time.Time
	minutes int
	columns int
	column  time.Duration
}

// spanOf is the last hour, or less of it if not that much is known yet.
func spanOf(points []point, to time.Time) span {
	minutes := 60
	for _, fewer := range []int{15, 5} {
		if len(points) == 0 || to.Sub(points[0].at) <= time.Duration(fewer)*time.Minute {
			minutes = fewer
		}
	}
	whole := time.Duration(minutes) * time.Minute
	column := max(sampleInterval, whole/mostColumns)
	return span{to: to, minutes: minutes, columns: int(whole / column), column: column}
}

// chart is a picture of values over a span. Its coordinates are columns, and hundredths of the highest value from the top.
type chart struct {
	Name, Now, Note string
	Label           string // for who can't see it
	Lines           []chartLine
	Highest, Half   string // what the upper edge and the middle stand for
	Columns, Height int
	Minutes         int // that it shows
}

type chartLine struct {
	Class, Name string
	Path, Area  string
	Values      string // of each column, in words, for whoever points at one
}

// series is one line of a chart before it is drawn.
type series struct {
	class, name string
	value       func(point) float64
	mean        bool // of the points in a column; else the highest
	area        bool
}

// columns gathers the points of each column, oldest first; NaN: none is known.
func (s *series) columns(points []point, over span) []float64 {
	sums, counts := make([]float64, over.columns), make([]int, over.columns)
	last := over.to.UnixNano() / int64(over.column)
	for _, p := range points {
		i, value := over.columns-1-int(last-p.at.UnixNano()/int64(over.column)), s.value(p)
		switch {
		case i < 0 || i >= over.columns || math.IsNaN(value):
			continue
		case s.mean || counts[i] == 0:
			sums[i] += value
		default:
			sums[i] = max(sums[i], value)
		}
		counts[i]++
	}
	for i, n := range counts {
		switch {
		case n == 0:
			sums[i] = math.NaN()
		case s.mean:
			sums[i] /= float64(n)
		}
	}
	return sums
}

// scale is what heights stand for.
type scale struct {
	floor float64   // the least that the upper edge stands for, so that noise does not look like a mountain
	edges []float64 // round numbers above ten; beyond them come those of [roundUp]
	words func(float64) string
}

// draw makes a chart.
func draw(name, now string, points []point, over span, s scale, lines ...series) chart {
	words := s.words
	c := chart{Name: name, Now: now, Columns: over.columns, Height: chartHeight, Minutes: over.minutes}
	values, highest := make([][]float64, len(lines)), 0.0
	for i := range lines {
		values[i] = lines[i].columns(points, over)
		for _, value := range values[i] {
			if !math.IsNaN(value) {
				highest = max(highest, value)
			}
		}
	}
	edge := s.edge(highest)
	c.Highest, c.Half = words(edge), words(edge/2)
	c.Label = name + " over the last " + strconv.Itoa(over.minutes) + " minutes: now " + now + ", at most " + words(highest)
	for i, line := range lines {
		drawn := chartLine{Class: line.class, Name: line.name, Values: spoken(values[i], words)}
		drawn.Path, drawn.Area = path(values[i], edge)
		if !line.area {
			drawn.Area = ""
		}
		c.Lines = append(c.Lines, drawn)
	}
	return c
}

// path draws values as a line, and as the area below it, with gaps where none is known for longer than a column: samples and columns are not
// in step.
func path(values []float64, edge float64) (line, area string) {
	const bridged = 1
	var l, a strings.Builder
	begin, last := -1, -1 // of the present run of values
	end := func() {
		if begin < 0 {
			return
		}
		if last == begin {
			l.WriteString("h0.1") // a single value is a dot
		}
		fmt.Fprintf(&a, "L%d %dZ", last, chartHeight)
	}
	for i, value := range values {
		if math.IsNaN(value) {
			continue
		}
		y := strconv.FormatFloat(chartHeight*(1-value/edge), 'f', 1, 64)
		if begin < 0 || i-last > 1+bridged {
			end()
			begin = i
			fmt.Fprintf(&l, "M%d %s", i, y)
			fmt.Fprintf(&a, "M%d %dL%d %s", i, chartHeight, i, y)
		} else {
			fmt.Fprintf(&l, "L%d %s", i, y)
			fmt.Fprintf(&a, "L%d %s", i, y)
		}
		last = i
	}
	end()
	return l.String(), a.String()
}

func spoken(values []float64, words func(float64) string) string {
	said := make([]string, len(values))
	for i, value := range values {
		if !math.IsNaN(value) {
			said[i] = words(value)
		}
	}
	return strings.Join(said, "|")
}

// edge is a round number that is not below the highest value.
func (s scale) edge(highest float64) float64 {
	edge := roundUp(max(s.floor, highest))
	if i, _ := slices.BinarySearch(s.edges, highest); i < len(s.edges) && edge > s.edges[0] {
		edge = s.edges[i]
	}
	return edge
}

// roundUp gives the next larger of 1, 2, 5, 10, 20, 50 and so on.
func roundUp(value float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(value)))
	for _, step := range []float64{1, 2, 5} {
		if value <= step*power*(1+1e-9) {
			return step * power
		}
	}
	return 10 * power
}

// charts are those of the page; none, if nothing is known: a standby's.
func (o *observed) charts() []chart {
	points, over := o.recently.points, spanOf(o.recently.points, o.now)
	if o.recently.epoch == 0 && !slices.ContainsFunc(points, func(p point) bool { return !math.IsNaN(p.lag) }) {
		return nil
	}
	lag, p50, p99 := unknown, math.NaN(), math.NaN()
	if !o.reading.standby && o.state != "" {
		lag = seconds(o.reading.lag.Seconds())
	}
	for i := len(points) - 1; i >= 0 && math.IsNaN(p50); i-- { // of when something was delivered last
		p50, p99 = points[i].p50, points[i].p99
	}
	inTime := func(floor float64) scale {
		return scale{floor: floor, words: seconds, edges: []float64{10, 20, 30, 60, 120, 240, 600, 1200, 2400, 3600, 2 * 3600, 4 * 3600, 8 * 3600}}
	}
	latency := draw("Commit to queryable", seconds(p50), points, over, inTime(0.1),
		series{class: "p99", name: "p99", value: func(p point) float64 { return p.p99 }},
		series{class: "p50", name: "p50", value: func(p point) float64 { return p.p50 }, mean: true})
	if !math.IsNaN(p99) {
		latency.Note = seconds(p99)
	}
	return []chart{
		draw("Lag", lag, points, over, inTime(1), series{class: "lag", name: "lag", value: func(p point) float64 { return p.lag }, area: true}),
		draw("Delivered", perSecond(o.recently.out), points, over, scale{floor: 10, words: perSecond},
			series{class: "rate", name: "rate", value: func(p point) float64 { return p.rate }, mean: true, area: true}),
		latency,
	}
}

// unknown stands for a number that is not known.
const unknown = "–"

func seconds(value float64) string {
	switch {
	case math.IsNaN(value):
		return unknown
	case value == 0:
		return "0 s"
	case value < 1:
		return strconv.FormatFloat(value*1000, 'f', 0, 64) + " ms"
	case value < 10:
		return strconv.FormatFloat(value, 'f', 1, 64) + " s"
	default:
		return cli.Span(time.Duration(value * float64(time.Second)))
	}
}

func perSecond(value float64) string {
	switch {
	case math.IsNaN(value):
		return unknown
	case value > 0 && value < 10:
		return strconv.FormatFloat(value, 'f', 1, 64) + "/s"
	default:
		return humanize.Comma(int64(math.Round(value))) + "/s"
	}
}
