package embedded

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
)

// storesVariable names the folder that holds node_modules, for programs that do not run inside the module.
const storesVariable = "SLUICEBOX_STORES"

// fetch is what to do when a package is missing. Every such error says it.
const fetch = "run `make stores`"

//go:embed package.json
var manifest []byte

// moduleLine recognizes our own go.mod: the walk up must not stop at the go.mod of a module that contains us or is vendored.
const moduleLine = `(?m)^module github\.com/sluicebox/sluicebox$`

// packageDir returns the folder of an npm package and the version in it, which is the one that package.json pins: another
// build of ClickHouse may be unable to listen, and its error would not say that its version is the reason.
func packageDir(name string) (dir, version string, err error) {
	var pinned struct {
		OptionalDependencies map[string]string `json:"optionalDependencies"`
	}
	if err := json.Unmarshal(manifest, &pinned); err != nil {
		return "", "", fmt.Errorf("read the list of packages: %w", err)
	}
	version, ok := pinned.OptionalDependencies[name]
	if !ok {
		return "", "", fmt.Errorf("there is no package %s, so none for %s/%s: use a server or a container", name, runtime.GOOS, runtime.GOARCH)
	}
	stores, err := storesDir()
	if err != nil {
		return "", "", err
	}
	dir = filepath.Join(stores, "node_modules", filepath.FromSlash(name))
	data, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("package %s is not in %s: %s", name, filepath.Join(stores, "node_modules"), fetch)
	}
	if err != nil {
		return "", "", fmt.Errorf("package %s: %w; if it is damaged, %s", name, err, fetch)
	}
	var found struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(data, &found); err != nil {
		return "", "", fmt.Errorf("package %s: %w: %s", name, err, fetch)
	}
	if found.Version != version {
		return "", "", fmt.Errorf("package %s in %s has version %s, not %s: %s", name, stores, found.Version, version, fetch)
	}
	return dir, version, nil
}

// storesDir finds the folder that holds node_modules.
func storesDir() (string, error) {
	if dir := os.Getenv(storesVariable); dir != "" {
		absolute, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("%s: %w", storesVariable, err)
		}
		return absolute, nil
	}
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the embedded stores: %w", err)
	}
	ours := regexp.MustCompile(moduleLine)
	for dir := start; ; dir = filepath.Dir(dir) {
		if data, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && ours.Match(data) {
			return filepath.Join(dir, "internal", "embedded"), nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("the embedded stores are looked for in the source tree of Sluicebox, and %s is not inside one: "+
				"run it there, or let %s name the folder that holds their node_modules (to fetch them there, %s)", start, storesVariable, fetch)
		}
	}
}

// npmArch is what npm calls the processor that this program runs on.
func npmArch() string {
	if runtime.GOARCH == "amd64" {
		return "x64"
	}
	return runtime.GOARCH
}
