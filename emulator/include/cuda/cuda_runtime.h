// What device code may use of it is there without it.
#pragma once
