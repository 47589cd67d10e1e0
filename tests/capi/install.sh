#!/bin/sh
# Uses an installed diffcache from outside, in one of the ways that it offers.
#
#   install.sh pkg-config|moved|subproject PREFIX SOURCE WORK        exit 77: cannot be tried on this machine
set -eu
way=$1 prefix=$2 source=$3 work=$4
rm -rf "$work"
mkdir -p "$work"
cd "$work"

# compile PREFIX: the C example and the C++ one, with what pkg-config says and nothing else.
compile() {
    export PKG_CONFIG_PATH="$1/lib/pkgconfig"
    flags=$(pkg-config --cflags --libs diffcache)
    "$CC" -std=c99 -Wall -Wextra -Wpedantic -Werror -o minimal "$source/examples/minimal.c" $flags -lm
    "$CXX" -std=c++11 -Wall -Wextra -Wpedantic -Werror -o minimal_cpp "$source/examples/minimal.cpp" $flags
    for program in minimal minimal_cpp; do
        LD_LIBRARY_PATH=$1/lib ./$program >"$program.txt"
        LD_LIBRARY_PATH=$1/lib ldd ./$program | grep -F "libdiffcache.so.0" | grep -F "$1/lib" # this copy, by its SONAME
    done
}

# configure_and_run PROJECT OPTIONS...: builds a CMake project and runs its `minimal`.
configure_and_run() {
    project=$1
    shift
    cmake --log-level=WARNING -S "$project" -B build "$@"
    cmake --build build --target minimal
    ./build/minimal >/dev/null
}

case $way in
pkg-config)
    command -v pkg-config >/dev/null || exit 77
    compile "$prefix"
    test "$(pkg-config --modversion diffcache)" = "$(cd "$prefix/lib" && ls libdiffcache.so.*.*.* | sed 's/libdiffcache.so.//')"
    # The static library needs exactly what Libs.private says.
    "$CC" -std=c99 -o static "$source/examples/minimal.c" $(pkg-config --cflags diffcache) "$prefix/lib/libdiffcache.a" \
        $(pkg-config --static --libs-only-l diffcache | sed 's/-ldiffcache//')
    ./static >/dev/null
    ;;
moved)
    cp -R "$prefix" elsewhere
    if grep -rF "$prefix" elsewhere/lib/cmake elsewhere/lib/pkgconfig; then
        echo "these files still name the folder that they were installed into" >&2
        exit 1
    fi
    configure_and_run "$source/examples" -DCMAKE_PREFIX_PATH="$work/elsewhere"
    ldd build/minimal | grep -F "$work/elsewhere/lib/libdiffcache.so.0"
    if command -v pkg-config >/dev/null; then compile "$work/elsewhere"; fi
    ;;
subproject)
    cat >CMakeLists.txt <<EOF
cmake_minimum_required(VERSION 3.16)
project(engine C)
add_subdirectory("$source" diffcache)
add_executable(minimal "$source/examples/minimal.c")
target_link_libraries(minimal PRIVATE diffcache::diffcache m)
EOF
    configure_and_run . -DCMAKE_INSTALL_LIBDIR=lib
    cmake --install build --prefix "$work/prefix" >/dev/null
    # What CMake installs is what `make install` does.
    diff -r -x 'libdiffcache.*' "$prefix" prefix
    test "$(cd "$prefix" && find . | sort)" = "$(cd prefix && find . | sort)"
    ;;
esac
