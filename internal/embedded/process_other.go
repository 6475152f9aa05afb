//go:build !linux

package embedded

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

var errUnsupported = errors.New("the embedded stores need Linux with glibc: use a server or a container")

const (
	quit = syscall.Signal(0)
	die  = syscall.Signal(0)
)

func supported() error { return errUnsupported }

// process is never made on this system.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func spawn(*exec.Cmd, syscall.Signal, *account) (*process, error) { return nil, errUnsupported }

func (*process) ended() bool        { return true }
func (*process) how() error         { return errUnsupported }
func (*process) fast()              {}
func (*process) immediate()         {}
func (*process) kill()              {}
func (*process) pause()             {}
func (*process) resume()            {}
func lock(string) (*os.File, error) { return nil, errUnsupported }
func freeShared(string, int)        {}
func owner(os.FileInfo) uint32      { return 0 }
