//go:build !unix

package sink

// zeros lends so many bytes that are read only.
func zeros(size int, use func([]byte) error) error { return use(make([]byte, size)) }
