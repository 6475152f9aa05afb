package doctor

import (
	"context"
	"errors"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5/pgconn"
)

// Result is how a thing is.
type Result string

// The results, from best to worst.
const (
	Skip Result = "skip" // it does not apply, or could not be looked at
	OK   Result = "ok"
	Warn Result = "warn" // delivery works, but not as well or as safely as it could
	Fail Result = "fail" // delivery can't work, or does not keep its promise, until somebody changes something
)

// worse returns the worse of two results.
func worse(a, b Result) Result {
	for _, r := range []Result{Fail, Warn} {
		if a == r || b == r {
			return r
		}
	}
	return a
}

// Finding is what a check found.
type Finding struct {
	Check  string `json:"check"`
	Result Result `json:"result"`
	Seen   string `json:"seen"`
	Wanted string `json:"wanted,omitempty"` // if it is not as it should be
	Mend   string `json:"mend,omitempty"`   // the command that mends it, SQL or shell, or what to do
	Err    error  `json:"-"`                // what was seen, if that was an error

	when when
}

func ok(seen string, args ...any) Finding {
	return Finding{Result: OK, Seen: fmt.Sprintf(seen, args...)}
}

func skip(why string, args ...any) Finding {
	return Finding{Result: Skip, Seen: fmt.Sprintf(why, args...)}
}

func warn(wanted, mend, seen string, args ...any) Finding {
	return Finding{Result: Warn, Wanted: wanted, Mend: mend, Seen: fmt.Sprintf(seen, args...)}
}

func fail(wanted, mend, seen string, args ...any) Finding {
	return Finding{Result: Fail, Wanted: wanted, Mend: mend, Seen: fmt.Sprintf(seen, args...)}
}

// unknown is the finding of a check that could not look: nothing is known, which is no reason for an alarm at night unless the
// databases themselves don't answer, and that is another check.
func unknown(err error) Finding {
	if refused, is := errors.AsType[*pgconn.PgError](err); is && refused.Code == notPrivileged {
		return Finding{Result: Skip, Seen: "this role may not look: " + refused.Message, Mend: "GRANT pg_monitor TO the role of DATABASE_URL", Err: err}
	}
	const notGranted = 497
	if refused, is := errors.AsType[*clickhouse.Exception](err); is && refused.Code == notGranted {
		return Finding{Result: Skip, Seen: "this user may not look: " + refused.Message, Mend: "GRANT SELECT ON system.* TO the user of CLICKHOUSE_URL", Err: err}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s: %w", checkTimeout, err)
	}
	return Finding{Result: Warn, Seen: "could not be looked at: " + err.Error(), Wanted: "an answer", Mend: "run `cdc doctor` again", Err: err}
}
