// Libtorch calls that tch has no binding for. Every function catches C++ exceptions and returns 0, or 1 with the message in odh_last_error.
#include <dlfcn.h>
