package batch

// Class says what a failed write means for the rows, and so what may be done next.
type Class string

// The classes of FACTS C8, C9 and C13.
const (
	// Unknown: the rows may or may not be stored, now or later. The same rows go again, with the same token.
	Unknown Class = "unknown"
	// Unlisted: ClickHouse answered with a code that is in no list. Mostly nothing was stored; it may be the content all the same.
	Unlisted Class = "unlisted"
	// Configuration: the table, a grant or a setting is wrong. Nothing was stored. Waits for the operator.
	Configuration Class = "configuration"
	// Data: ClickHouse refuses the content. Nothing was stored.
	Data Class = "data"
	// Expired: the deadline of the batch has passed on ClickHouse's clock; this attempt stored nothing, an earlier one may have.
	Expired Class = "expired"
)

// Failure is the error of a write that did not surely succeed.
type Failure struct {
	Class    Class
	Err      error
	Hint     string     // what to do about it, for the operator; may be empty
	Rejected []Rejected // of class Data: the rows at fault, if the sink can tell; nothing was sent then
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap gives the error of the client library.
func (f *Failure) Unwrap() error { return f.Err }
