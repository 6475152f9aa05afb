package audit

import "context"

// Look looks at some ids alone.
func (a *Audit) Look(ctx context.Context, ids []int64) (*Report, error) {
	a.report = newReport(a.config, a.config.Since, nil)
	if _, err := a.look(ctx, ids, true); err != nil {
		return nil, err
	}
	a.finish(0)
	return a.report, nil
}
