// Package failpoint names the places where a fault test kills the daemon. In a release build it does nothing and costs
// nothing; a binary built with `-tags failpoints` obeys the environment variable SLUICEBOX_FAILPOINT.
package failpoint
