package cli

import "strconv"

// Credential is a [Secret] that may change while the program runs: when it was read from a file, [Credential.Now] reads that again.
type Credential struct {
	value Secret
	path  string // of its file; empty: it was given otherwise, and never changes
}

// NewCredential makes one that never changes.
func NewCredential(value string) Credential { return Credential{value: Secret(value)} }

// Now is the secret as its file has it at the moment. A file that can't be read any more leaves it as it was when the program started: it
// may have been there for the start only.
func (c Credential) Now() string {
	if value, err := c.Read(); err == nil {
		return value
	}
	return string(c.value)
}

// Read is the secret as its file has it at the moment.
func (c Credential) Read() (string, error) {
	if c.path == "" {
		return string(c.value), nil
	}
	return readSecret(c.path)
}

// Path is the file that it comes from; empty: it comes from none.
func (c Credential) Path() string { return c.path }

// String does not return the secret.
func (c Credential) String() string { return c.value.String() }

// GoString does not return the secret.
func (c Credential) GoString() string { return strconv.Quote(c.String()) }

// MarshalText does not return the secret.
func (c Credential) MarshalText() ([]byte, error) { return c.value.MarshalText() }

// UnmarshalText takes the secret itself.
func (c *Credential) UnmarshalText(text []byte) error {
	c.value = Secret(text)
	return nil
}
