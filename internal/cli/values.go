package cli

import (
	"bytes"
	"fmt"
	"net"
	"reflect"
	"strconv"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/loopback"
)

// hidden is printed in the place of a secret.
const hidden = "[hidden]"

// Secret is a setting that must not be seen. Printing it in any way gives [hidden]; convert it to string where it is used.
type Secret string

// String does not return the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString does not return the secret.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText does not return the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Bytes is a size in bytes. It is written as a number of bytes or with a unit: 16MiB is 16·1024², 16MB is 16·1000².
type Bytes uint64

// UnmarshalText reads a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	size, err := humanize.ParseBytes(string(text))
	if err != nil || bytes.ContainsRune(text, ',') { // it takes 1,5MiB for 15MiB
		return fmt.Errorf("%q is not a size such as 64KiB, 16MiB or 1000000", text)
	}
	*b = Bytes(size)
	return nil
}

// String returns the size in the largest binary unit that shows it exactly.
func (b Bytes) String() string {
	units := []string{"", "KiB", "MiB", "GiB", "TiB"}
	size, unit := uint64(b), 0
	for size != 0 && size%1024 == 0 && unit < len(units)-1 {
		size, unit = size/1024, unit+1
	}
	return strconv.FormatUint(size, 10) + units[unit]
}

// Addr is the TCP address to listen on: host:port. No host means all interfaces, and port 0 a free one.
type Addr string

// UnmarshalText reads an address. It does not look the host up.
func (a *Addr) UnmarshalText(text []byte) error {
	_, port, err := net.SplitHostPort(string(text))
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is not an address such as 127.0.0.1:8080 or [::1]:8080", text)
	}
	*a = Addr(text)
	return nil
}

// Loopback tells whether only programs of the same machine (in Kubernetes: of the same pod) can reach the address.
func (a Addr) Loopback() bool { return loopback.Host(string(a)) }

// decimalInt reads a whole number. kong itself takes 010 for 8.
func decimalInt(ctx *kong.DecodeContext, target reflect.Value) error {
	text := ""
	if err := ctx.Scan.PopValueInto("int", &text); err != nil {
		return err
	}
	bits := target.Type().Bits()
	n, err := strconv.ParseInt(text, 10, bits)
	if err != nil {
		return fmt.Errorf("expected a valid %d bit int but got %q", bits, text)
	}
	target.SetInt(n)
	return nil
}
