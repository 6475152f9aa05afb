package cli

import (
	"reflect"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// helpWidth is the longest line of help, in characters. Longer ones are hard to read, however wide the terminal is.
const helpWidth = 110

// help is the text of a flag: what it is for, then in brackets what is allowed, its default and its variable.
func (e *environment) help(value *kong.Value) string {
	var notes []string
	if value.Flag != nil && value.Required && !value.HasDefault {
		notes = append(notes, "required")
	}
	if allowed := e.ranges[value].String(); allowed != "" {
		notes = append(notes, allowed)
	}
	if value.HasDefault && value.Default != "" {
		notes = append(notes, "default "+value.Default)
	}
	if name := e.names[value]; name != "" {
		if isSecret(value) {
			name += " or " + name + fileSuffix
		}
		notes = append(notes, name)
	}
	if len(notes) == 0 {
		return value.Help
	}
	return strings.TrimSpace(value.Help + " [" + strings.Join(notes, "; ") + "]")
}

// placeholder says what kind of value a flag takes, and so in which unit.
func placeholder(value *kong.Value) string {
	switch value.Target.Interface().(type) {
	case time.Duration:
		return "DURATION"
	case Bytes:
		return "SIZE"
	case Addr:
		return "HOST:PORT"
	case Secret, []Secret, Credential:
		return "SECRET"
	}
	switch {
	case value.Target.CanInt(), value.Target.CanUint():
		return "N"
	case value.Enum != "":
		return "WORD"
	case value.Target.Kind() == reflect.String:
		return "TEXT"
	default:
		return ""
	}
}

// isSecret tells whether the value of a flag must not be shown.
func isSecret(value *kong.Value) bool {
	switch value.Target.Interface().(type) {
	case Secret, []Secret, Credential:
		return true
	default:
		return false
	}
}

// nearest returns the name that is most like the misspelt one; empty if none is.
func nearest(misspelt string, names []string) string {
	best, least := "", len(misspelt)/2 // more than half of it wrong: another word
	for _, name := range names {
		if d := distance(misspelt, name); d < least {
			best, least = name, d
		}
	}
	return best
}

// distance counts the bytes to insert, delete or change to make b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j]+1, row[j+1]+1, change)
		}
	}
	return row[len(b)]
}
