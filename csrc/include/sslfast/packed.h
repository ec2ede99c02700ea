// Packed operands and the products of them, by whatever this instruction set multiplies best.
#pragma once

#if defined(SSLFAST_MATRIX)
#include "sslfast/matrix_products.h"
#else
#include "sslfast/vector_products.h"
#endif
