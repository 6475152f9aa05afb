//go:build !unix

package sink

// zeros are bytes that are read only.
type zeros struct{ pages []byte }

// of returns size of them, valid until the next call.
func (z *zeros) of(size int) ([]byte, error) {
	if size > len(z.pages) {
		z.pages = make([]byte, size)
	}
	return z.pages[:size], nil
}
