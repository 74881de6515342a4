#define CONC_IMPLEMENTATION
#include "../conc.h"
