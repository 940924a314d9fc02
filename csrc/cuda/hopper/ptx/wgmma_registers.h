// Operand lists of wgmma for every N: inline asm takes positional operands only, so each N has its own
// numbers. MOELA_D<r> and MOELA_R<r> list the r = N/2 accumulator registers, as placeholders and as operands;
// MOELA_FOR_EACH_N calls f(N, r, and the seven numbers after them).
#pragma once

#define MOELA_D4 "%0, %1, %2, %3"
#define MOELA_D8 MOELA_D4 ", %4, %5, %6, %7"
#define MOELA_D12 MOELA_D8 ", %8, %9, %10, %11"
#define MOELA_D16 MOELA_D12 ", %12, %13, %14, %15"
#define MOELA_D20 MOELA_D16 ", %16, %17, %18, %19"
#define MOELA_D24 MOELA_D20 ", %20, %21, %22, %23"
#define MOELA_D28 MOELA_D24 ", %24, %25, %26, %27"
#define MOELA_D32 MOELA_D28 ", %28, %29, %30, %31"
#define MOELA_D36 MOELA_D32 ", %32, %33, %34, %35"
#define MOELA_D40 MOELA_D36 ", %36, %37, %38, %39"
#define MOELA_D44 MOELA_D40 ", %40, %41, %42, %43"
#define MOELA_D48 MOELA_D44 ", %44, %45, %46, %47"
#define MOELA_D52 MOELA_D48 ", %48, %49, %50, %51"
#define MOELA_D56 MOELA_D52 ", %52, %53, %54, %55"
#define MOELA_D60 MOELA_D56 ", %56, %57, %58, %59"
#define MOELA_D64 MOELA_D60 ", %60, %61, %62, %63"
#define MOELA_D68 MOELA_D64 ", %64, %65, %66, %67"
#define MOELA_D72 MOELA_D68 ", %68, %69, %70, %71"
#define MOELA_D76 MOELA_D72 ", %72, %73, %74, %75"
#define MOELA_D80 MOELA_D76 ", %76, %77, %78, %79"
#define MOELA_D84 MOELA_D80 ", %80, %81, %82, %83"
#define MOELA_D88 MOELA_D84 ", %84, %85, %86, %87"
#define MOELA_D92 MOELA_D88 ", %88, %89, %90, %91"
#define MOELA_D96 MOELA_D92 ", %92, %93, %94, %95"
#define MOELA_D100 MOELA_D96 ", %96, %97, %98, %99"
#define MOELA_D104 MOELA_D100 ", %100, %101, %102, %103"
#define MOELA_D108 MOELA_D104 ", %104, %105, %106, %107"
#define MOELA_D112 MOELA_D108 ", %108, %109, %110, %111"
#define MOELA_D116 MOELA_D112 ", %112, %113, %114, %115"
#define MOELA_D120 MOELA_D116 ", %116, %117, %118, %119"
#define MOELA_D124 MOELA_D120 ", %120, %121, %122, %123"
#define MOELA_D128 MOELA_D124 ", %124, %125, %126, %127"

#define MOELA_R4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define MOELA_R8 MOELA_R4, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define MOELA_R12 MOELA_R8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define MOELA_R16 MOELA_R12, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define MOELA_R20 MOELA_R16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define MOELA_R24 MOELA_R20, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define MOELA_R28 MOELA_R24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define MOELA_R32 MOELA_R28, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define MOELA_R36 MOELA_R32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define MOELA_R40 MOELA_R36, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define MOELA_R44 MOELA_R40, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define MOELA_R48 MOELA_R44, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define MOELA_R52 MOELA_R48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define MOELA_R56 MOELA_R52, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define MOELA_R60 MOELA_R56, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define MOELA_R64 MOELA_R60, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define MOELA_R68 MOELA_R64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define MOELA_R72 MOELA_R68, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define MOELA_R76 MOELA_R72, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define MOELA_R80 MOELA_R76, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define MOELA_R84 MOELA_R80, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define MOELA_R88 MOELA_R84, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define MOELA_R92 MOELA_R88, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define MOELA_R96 MOELA_R92, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define MOELA_R100 MOELA_R96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define MOELA_R104 MOELA_R100, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define MOELA_R108 MOELA_R104, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define MOELA_R112 MOELA_R108, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define MOELA_R116 MOELA_R112, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define MOELA_R120 MOELA_R116, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define MOELA_R124 MOELA_R120, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define MOELA_R128 MOELA_R124, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

#define MOELA_FOR_EACH_N(f)                                                                                 \
  f(8, 4, 4, 5, 6, 7, 8, 9, 10) f(16, 8, 8, 9, 10, 11, 12, 13, 14) f(24, 12, 12, 13, 14, 15, 16, 17, 18)    \
      f(32, 16, 16, 17, 18, 19, 20, 21, 22) f(40, 20, 20, 21, 22, 23, 24, 25, 26)                           \
          f(48, 24, 24, 25, 26, 27, 28, 29, 30) f(56, 28, 28, 29, 30, 31, 32, 33, 34)                       \
              f(64, 32, 32, 33, 34, 35, 36, 37, 38) f(72, 36, 36, 37, 38, 39, 40, 41, 42)                   \
                  f(80, 40, 40, 41, 42, 43, 44, 45, 46) f(88, 44, 44, 45, 46, 47, 48, 49, 50) f(            \
                      96, 48, 48, 49, 50, 51, 52, 53, 54) f(104, 52, 52, 53, 54, 55, 56, 57, 58)            \
                      f(112, 56, 56, 57, 58, 59, 60, 61, 62) f(120, 60, 60, 61, 62, 63, 64, 65, 66) f(      \
                          128, 64, 64, 65, 66, 67, 68, 69, 70) f(136, 68, 68, 69, 70, 71, 72, 73, 74)       \
                          f(144, 72, 72, 73, 74, 75, 76, 77, 78) f(152, 76, 76, 77, 78, 79, 80, 81, 82) f(  \
                              160, 80, 80, 81, 82, 83, 84, 85, 86) f(168, 84, 84, 85, 86, 87, 88, 89, 90)   \
                              f(176, 88, 88, 89, 90, 91, 92, 93, 94) f(184, 92, 92, 93, 94, 95, 96, 97, 98) \
                                  f(192, 96, 96, 97, 98, 99, 100, 101, 102)                                 \
                                      f(200, 100, 100, 101, 102, 103, 104, 105, 106)                        \
                                          f(208, 104, 104, 105, 106, 107, 108, 109, 110)                    \
                                              f(216, 108, 108, 109, 110, 111, 112, 113, 114)                \
                                                  f(224, 112, 112, 113, 114, 115, 116, 117, 118)            \
                                                      f(232, 116, 116, 117, 118, 119, 120, 121, 122)        \
                                                          f(240, 120, 120, 121, 122, 123, 124, 125, 126) f( \
                                                              248, 124, 124, 125, 126, 127, 128, 129, 130)  \
                                                              f(256, 128, 128, 129, 130, 131, 132, 133, 134)
