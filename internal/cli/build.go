package cli

import (
	"cmp"
	"fmt"
	"runtime/debug"
)

// Set by the linker where a build has no repository to look at, as in a container:
//
//	go build -ldflags "-X github.com/sluicebox/sluicebox/internal/cli.version=v1.2.3 -X …/cli.revision=0123abc"
//
//nolint:gochecknoglobals // the linker can only set variables
var version, revision string

// Build tells which program this is.
type Build struct {
	Version  string // as tagged, or "(devel)"
	Revision string // commit, with "+dirty" when files were changed after it; "unknown" if the build did not know
	Go       string // version of the Go toolchain
}

// ReadBuild returns what the linker or the Go toolchain stamped into the running program.
func ReadBuild() Build {
	build := Build{Version: version, Revision: revision}
	if info, ok := debug.ReadBuildInfo(); ok {
		build.Go = info.GoVersion
		build.Version = cmp.Or(build.Version, info.Main.Version)
		if build.Revision == "" {
			build.Revision = vcsRevision(info.Settings)
		}
	}
	build.Version = cmp.Or(build.Version, "(devel)")
	build.Revision = cmp.Or(build.Revision, "unknown")
	return build
}

func vcsRevision(settings []debug.BuildSetting) string {
	commit, dirty := "", ""
	for _, setting := range settings {
		switch {
		case setting.Key == "vcs.revision":
			commit = setting.Value
		case setting.Key == "vcs.modified" && setting.Value == "true":
			dirty = "+dirty"
		}
	}
	if commit == "" {
		return ""
	}
	return commit + dirty
}

// String returns all of it in one line.
func (b Build) String() string {
	return fmt.Sprintf("%s (revision %s, %s)", b.Version, b.Revision, b.Go)
}
