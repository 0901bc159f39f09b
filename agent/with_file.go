// SPDX-License-Identifier: Apache-2.0

//go:build !no_file

package main

import _ "droidtap/agent/output/file"
