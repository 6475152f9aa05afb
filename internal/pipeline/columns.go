package pipeline

import (
	"slices"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// columns tells when other columns of the outbox are carried, or ignored, than before.
func (p *Pipeline) columns(b *batch.Batch) {
	var carried []string
	for _, column := range b.Rows[0].More {
		if !slices.Contains(b.Ignored, column.Name) {
			carried = append(carried, column.Name)
		}
	}
	for _, name := range p.carried {
		if !slices.Contains(carried, name) {
			p.log.Warn().Str("column", name).Msg("the column is no longer in both tables; ClickHouse fills in its default from now on")
		}
	}
	for _, name := range carried {
		if !slices.Contains(p.carried, name) {
			p.log.Info().Str("column", name).Msg("the column is in both tables, and is carried along")
		}
	}
	for _, name := range b.Ignored {
		if !slices.Contains(p.ignored, name) {
			p.log.Warn().Str("column", name).Msg("the table in ClickHouse has no such column; it is ignored")
		}
	}
	p.observer.Columns(len(b.Ignored))
	p.carried, p.ignored = carried, b.Ignored
}
