package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/trust"
)

// Codes of ClickHouse (FACTS C9, C13). All others, and every error that is not the server's own answer, leave the outcome
// unknown: that is the safe reading.
const (
	codeViolatedConstraint = 469
	codeUnknownTable       = 60
	codeUnknownDatabase    = 81
	codeNoSuchColumn       = 16
	codeTypeMismatch       = 53
	codeNotGranted         = 497
	codeWrongPassword      = 516
	codeUnknownUser        = 192
	codeWrongPasswordOld   = 193
	codeRequiredPassword   = 194 // what HTTP says for a wrong one
	codeReadonly           = 164
	codeReadonlyTable      = 242
	codeTableSetReadonly   = 774 // by the setting table_readonly
	codeCorruptedData      = 246
)

// classify says what an error means for the rows of a batch.
func classify(err error) error {
	var failure *batch.Failure
	if errors.As(err, &failure) {
		return err
	}
	failure = &batch.Failure{Class: batch.Unknown, Err: err}
	var exception *clickhouse.Exception
	if !errors.As(err, &exception) {
		if hint := trust.Hint(err); hint != "" {
			failure.Hint = hint
		} else if errors.Is(err, context.DeadlineExceeded) {
			failure.Hint = "ClickHouse did not answer in time; the same batch is sent again under the same token"
		} else {
			failure.Hint = "is ClickHouse up, and CLICKHOUSE_URL right?"
		}
		return failure
	}
	if Denied(err) {
		failure.Class, failure.Hint = batch.Configuration, "check user and password in CLICKHOUSE_URL"
		return failure
	}
	switch exception.Code {
	case codeViolatedConstraint:
		failure.Class = batch.Data // a constraint of the operator's own
		// The name comes first. What follows contains the values of the row, which may be anything.
		_, name, _ := strings.Cut(exception.Message, "Constraint `")
		if strings.HasPrefix(name, deadlineConstraint+"`") {
			failure.Class = batch.Expired
		}
	case codeUnknownTable:
		failure.Class, failure.Hint = batch.Configuration, "run `cdc migrate`, which creates the table, or set CDC_TARGET_TABLE"
	case codeUnknownDatabase:
		failure.Class, failure.Hint = batch.Configuration, "create the database, or name another one at the end of CLICKHOUSE_URL"
	case codeNoSuchColumn, codeTypeMismatch:
		failure.Class, failure.Hint = batch.Configuration, "compare the table with migrations/clickhouse"
	case codeNotGranted:
		failure.Class, failure.Hint = batch.Configuration, "grant the user INSERT and SELECT on the table"
	case codeReadonly, codeReadonlyTable, codeTableSetReadonly:
		failure.Hint = "the table or the user is read-only at the moment"
	case codeCorruptedData: // a merge that meets a full disk leaves a part of empty files, and keeps what it was made of for a while
		failure.Hint = "a part of the table is damaged. At once, DETACH TABLE and ATTACH TABLE bring back the parts that it was merged from, which ClickHouse " +
			"keeps for 8 minutes (old_parts_lifetime); later, ALTER TABLE … DETACH PART the damaged one, and `cdc audit --repair` delivers what is missing"
	case 6, 25, 26, 27, 38, 41, 69, 70, 72, 117, 130, 131, 153, 321, 349, 376, 395, 407, 441, 467, 632, 675, 676, 691:
		// The content itself: what can't be parsed, converted or held, mostly by an expression of the table (a constraint, a column that
		// is computed) or of a view behind it. One of a view has failed after the table itself stored the rows.
		failure.Class = batch.Data
	case 49, 74, 75, 76, 159, 173, 198, 201, 202, 203, 209, 210, 218, 225, 236, 241, 243, 252, 271, 279, 285, 286, 306, 307, 319,
		394, 425, 439, 473, 499, 594, 667, 733, 999, 1000, 1001, 1002:
		// Network, overload, quotas, memory, disk, replicas, shutting down, faults within: never about the content.
	default:
		failure.Class = batch.Unlisted
	}
	if failure.Class == batch.Data || failure.Class == batch.Unlisted {
		failure.Err = discreet{err, exception}
	}
	return failure
}

// discreet is a refusal of content without what ClickHouse says of it, since errors are logged and what events hold must not be:
// ClickHouse repeats values anywhere, mostly without quotes.
type discreet struct {
	error

	exception *clickhouse.Exception
}

// Error tells what surely holds no value: who sent what, the code, and of a constraint its name and expression.
func (d discreet) Error() string {
	sent, _, found := strings.Cut(d.error.Error(), d.exception.Error())
	if !found {
		sent = ""
	}
	code := proto.Error(d.exception.Code)
	if code != codeViolatedConstraint {
		return fmt.Sprintf("%scode: %d, %s; the message, which may repeat values, is in ClickHouse's own log", sent, code, code.String())
	}
	said, _, _ := strings.Cut(d.exception.Message, "Column values: ")
	said, _, _ = strings.Cut(said, "'")
	return fmt.Sprintf("%scode: %d, message: %s", sent, code, said)
}

// Unwrap gives the error of the client library.
func (d discreet) Unwrap() error { return d.error }

// Denied says whether ClickHouse refused the user or the password.
func Denied(err error) bool {
	var exception *clickhouse.Exception
	if !errors.As(err, &exception) {
		return false
	}
	switch exception.Code {
	case codeWrongPassword, codeUnknownUser, codeWrongPasswordOld, codeRequiredPassword:
		return true
	}
	return false
}
