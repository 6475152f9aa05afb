package cli

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// limits are what the tags min, max and enum allow for a flag. The ends of a range are written like values of the flag:
// min:"10ms", max:"1GiB".
type limits struct {
	min, max         reflect.Value // invalid if there is none
	minText, maxText string
	enum             []string
}

func readLimits(flag *kong.Value) (limits, error) {
	l := limits{minText: flag.Tag.Get("min"), maxText: flag.Tag.Get("max")}
	if flag.Enum != "" {
		l.enum = flag.EnumSlice()
	}
	for _, end := range []struct {
		text   string
		target *reflect.Value
	}{{l.minText, &l.min}, {l.maxText, &l.max}} {
		if end.text == "" {
			continue
		}
		value := reflect.New(flag.Target.Type()).Elem()
		if err := decode(flag, end.text, value); err != nil {
			return limits{}, fmt.Errorf("range of --%s: %w", flag.Name, err)
		}
		*end.target = value
	}
	return l, nil
}

// check says what is wrong with a value of the flag.
func (l limits) check(value reflect.Value) error {
	if text := fmt.Sprint(value.Interface()); len(l.enum) > 0 && !slices.Contains(l.enum, text) {
		return fmt.Errorf("%q is not one of %s", text, strings.Join(l.enum, ", "))
	}
	below := l.min.IsValid() && order(value, l.min) < 0
	above := l.max.IsValid() && order(value, l.max) > 0
	if below || above {
		return fmt.Errorf("%v is out of range, %s", value.Interface(), l)
	}
	return nil
}

// String tells a person what is allowed; empty if all is.
func (l limits) String() string {
	switch {
	case len(l.enum) > 0:
		return "one of " + strings.Join(l.enum, ", ")
	case l.minText != "" && l.maxText != "":
		return l.minText + " to " + l.maxText
	case l.minText != "":
		return "at least " + l.minText
	case l.maxText != "":
		return "at most " + l.maxText
	default:
		return ""
	}
}

// order compares two numbers of the same type; values of other types have no order, and are equal.
func order(a, b reflect.Value) int {
	switch {
	case a.CanInt():
		return cmp.Compare(a.Int(), b.Int())
	case a.CanUint():
		return cmp.Compare(a.Uint(), b.Uint())
	case a.CanFloat():
		return cmp.Compare(a.Float(), b.Float())
	default:
		return 0
	}
}
