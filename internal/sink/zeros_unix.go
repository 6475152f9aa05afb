//go:build unix

package sink

import (
	"fmt"
	"syscall"
)

// zeros are bytes that are read only. They cost addresses and no memory: all of them are the kernel's one page of zeros.
type zeros struct{ pages []byte }

// of returns size of them, valid until the next call.
func (z *zeros) of(size int) ([]byte, error) {
	const unit = 1 << 20
	if size <= len(z.pages) {
		return z.pages[:size], nil
	}
	if z.pages != nil {
		if err := syscall.Munmap(z.pages); err != nil {
			return nil, fmt.Errorf("give addresses back: %w", err)
		}
		z.pages = nil
	}
	pages, err := syscall.Mmap(-1, 0, (size+unit-1)/unit*unit, syscall.PROT_READ, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of zeros: %w", size, err)
	}
	z.pages = pages
	return z.pages[:size], nil
}
