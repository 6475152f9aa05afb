//go:build unix

package sink

import (
	"errors"
	"fmt"
	"syscall"
)

// zeros lends so many bytes that are read only. They are not the garbage collector's: a batch's worth of them is gone as soon as it was used.
func zeros(size int, use func([]byte) error) error {
	if size == 0 {
		return nil
	}
	pages, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return fmt.Errorf("map %d bytes of zeros: %w", size, err)
	}
	return errors.Join(use(pages), syscall.Munmap(pages))
}
